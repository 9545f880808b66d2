"""Build, load and write two-tower models in open_clip's own terms."""

from __future__ import annotations

import dataclasses
import json
import pickle
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_checkpoint
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlp import resolve
from vlp.encoders import source, text_tower
from vlp.encoders.locks import lock
from vlp.encoders.options import ModelOptions
from vlp.encoders.source import CONFIG_FILE, EMA_FILE, WEIGHTS_FILE, Source
from vlp.encoders.two_tower import TwoTower
from vlp.types import UserError

__all__ = ["CONFIG_FILE", "EMA_FILE", "WEIGHTS_FILE", "ModelOptions", "build", "describe", "load", "save_openclip_directory"]

_TOP_KEYS = (
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "multimodal_cfg",
    "custom_text",
    "quick_gelu",
    "init_logit_scale",
    "init_logit_bias",
    "nonscalar_logit_scale",
)


def build(options: ModelOptions, seed: int) -> TwoTower:
    """The model of a recipe, in training mode; its random values depend on ``seed`` alone.

    Raises:
        UserError: an unknown name or key, weights that cannot be had or do not fit.
    """
    found = source.of_init(options.init, options.name) if options.init else None
    config = _openclip_config(options, found)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _assemble(config, found, pretrained_towers=found is None)
    if found is not None:
        _load_weights(model, found)
        for name in ("logit_scale", "logit_bias"):
            wanted = getattr(options, f"init_{name}")
            if wanted is not None:
                getattr(model.clip, name).data.fill_(wanted)
    _lock(model, options)
    return model.train()


def load(reference: str, device: str | torch.device = "cpu") -> TwoTower:
    """The model that a MODEL argument names, in evaluation mode; a run's average (EMA) is preferred to its weights.

    Raises:
        UserError: nothing is there, or it cannot be loaded; the message says what was looked for.
    """
    found = source.of_reference(reference)
    preprocess = merge_preprocess_dict(PreprocessCfg(), found.preprocess_cfg)
    model = _assemble({"model_cfg": found.model_cfg, "preprocess_cfg": preprocess}, found, pretrained_towers=False)
    _load_weights(model, found)
    return model.to(device).eval()


def describe(options: ModelOptions) -> dict[str, Any]:
    """What ``build`` would make, without allocating weights: parameters of each tower, sizes, where it starts."""
    found = source.of_init(options.init, options.name) if options.init else None
    model = _assemble(_openclip_config(options, found), found, pretrained_towers=False, device=torch.device("meta"))
    _lock(model, options)
    return {
        "model": options.name or (found.described if options.config is None and found else "custom"),
        "init": found.described if found else "random",
        "parameters": model.parameters_by_tower(),
        "trainable": model.parameters_by_tower(trainable_only=True),
        "embed_dim": model.openclip_config["model_cfg"]["embed_dim"],
        "image_size": model.picture_format.size,
        "context_length": model.tokenizer.context_length,  # type: ignore[attr-defined]
        "tokenizer": model.openclip_config["model_cfg"]["text_cfg"].get("hf_tokenizer_name") or "open_clip's BPE",
    }


def save_openclip_directory(
    model: TwoTower,
    directory: str | Path,
    state_dict: dict[str, Tensor] | None = None,
    final: str | Path | None = None,
) -> None:
    """Write what ``open_clip.create_model_and_transforms("local-dir:DIRECTORY")`` needs, tokenizer files included.

    ``state_dict`` (of ``model`` or of ``model.clip``) replaces the model's own values. open_clip wants the place of a
    transformers text tower's configuration in full: ``final`` is where the directory will lie when it is renamed
    later; without it the tower's original place is written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = deepcopy(model.openclip_config)
    if text_tower.is_transformers(config["model_cfg"]):
        text_tower.write(model.clip, config["model_cfg"], directory, Path(final) if final else None)
    if hasattr(model.tokenizer, "save_pretrained"):
        model.tokenizer.save_pretrained(directory)
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    values = model.clip.state_dict() if state_dict is None else state_dict
    save_file(_unshared(values), directory / WEIGHTS_FILE, metadata={"format": "pt"})


def _unshared(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors without the prefix of TwoTower, none sharing memory: safetensors refuses tied weights."""
    seen: set[int] = set()
    result = {}
    for name, value in values.items():
        value = value.detach().contiguous()
        place = value.untyped_storage().data_ptr()
        result[name.removeprefix("clip.")] = value.clone() if place in seen else value
        seen.add(place)
    return result


def _openclip_config(options: ModelOptions, found: Source | None) -> dict[str, Any]:
    """``{"model_cfg", "preprocess_cfg"}`` of a recipe's section ``model``."""
    if options.config is not None:
        model_cfg = _custom_config(options.config)
    elif found is not None and found.model_cfg is not None and found.directory is None and options.name is not None:
        model_cfg = deepcopy(found.model_cfg)  # a tag: the named model, with the activation of the weights
    elif options.name is not None:
        model_cfg = source.named_config(options.name)
    elif found is not None and found.model_cfg is not None:
        model_cfg = deepcopy(found.model_cfg)
    else:
        raise UserError(f"model.init: {options.init} is a lone weights file: give model.name or model.config with it")
    for key in ("init_logit_scale", "init_logit_bias"):
        if getattr(options, key) is not None:
            model_cfg[key] = getattr(options, key)
    preprocess = merge_preprocess_dict(PreprocessCfg(), found.preprocess_cfg if found else {})
    preprocess = merge_preprocess_dict(preprocess, options.picture.model_dump(exclude_none=True))
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocess}


def _custom_config(config: dict[str, Any] | str) -> dict[str, Any]:
    """A model configuration given inline or as a JSON file, its keys checked."""
    where = "model.config"
    if isinstance(config, str):
        where = config
        try:
            config = json.loads(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"model.config: {where} cannot be read as JSON: {error}") from error
    assert isinstance(config, dict)
    config = deepcopy(config.get("model_cfg", config))
    _check_keys(config, _TOP_KEYS, where)
    for key, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        if not isinstance(config.get(key), dict):
            raise UserError(f"{where}: {key} is missing: it describes one of the two towers")
        _check_keys(config[key], [f.name for f in dataclasses.fields(kind)], f"{where}.{key}")
    if not isinstance(config.get("embed_dim"), int):
        raise UserError(f"{where}: embed_dim is missing: the width of the common space, such as 512")
    return config


def _check_keys(given: dict[str, Any], known: Any, where: str) -> None:
    for key in given:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'{resolve.nearest(str(key), list(known))}")


def _assemble(
    config: dict[str, Any], found: Source | None, pretrained_towers: bool, device: torch.device | None = None
) -> TwoTower:
    """Towers with random values (or, with ``pretrained_towers``, those their configuration asks for) and tokenizer."""
    config = deepcopy(config)
    directory = found.directory if found else None
    if text_tower.is_transformers(config["model_cfg"]):
        text_tower.complete(config["model_cfg"])
    tokenizer = text_tower.tokenizer(config["model_cfg"], directory)
    clip = _construct(config["model_cfg"], directory, pretrained_towers, device)
    text_tower.check_vocabulary(tokenizer, clip)
    config["preprocess_cfg"]["size"] = clip.visual.image_size
    set_model_preprocess_cfg(clip, config["preprocess_cfg"])
    model = TwoTower(clip, tokenizer, config)
    for name, parameter in clip.named_parameters():
        if name.startswith("text_decoder."):  # CoCa's captioning head: it does not take part in the embeddings
            parameter.requires_grad_(False)
    return model


def _construct(
    model_cfg: dict[str, Any], directory: Path | None, pretrained_towers: bool, device: torch.device | None
) -> Any:
    arguments = deepcopy(model_cfg)
    vision, text = arguments["vision_cfg"], arguments["text_cfg"]
    transformers_text = text_tower.is_transformers(arguments)
    vision["timm_model_pretrained"] = pretrained_towers and vision.get("timm_model_pretrained", False)
    text["hf_model_pretrained"] = pretrained_towers and text.get("hf_model_pretrained", True)
    if transformers_text:
        text["hf_model_name"] = text_tower.place(text["hf_model_name"], directory)
    custom = arguments.pop("custom_text", False) or transformers_text
    kind = open_clip.CoCa if "multimodal_cfg" in arguments else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    context: AbstractContextManager[Any] = device if device is not None else nullcontext()
    try:
        with context:
            clip = kind(**arguments)
    except KeyError as error:
        raise UserError(text_tower.unsupported(error)) from error
    except (OSError, TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"model: open_clip cannot build these towers: {reason or type(error).__name__}") from error
    return clip.float()  # transformers keeps half-precision weights as they are stored; training wants fp32


def _load_weights(model: TwoTower, found: Source) -> None:
    try:
        load_checkpoint(model.clip, str(found.weights), strict=True, weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, EOFError, OSError) as error:
        raise UserError(
            f"{found.weights} cannot be read as weights (safetensors, or .pt of plain tensors): {_short(error)}"
        ) from error
    except (RuntimeError, AssertionError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{found.weights} does not fit the model: {_short(error)}") from error
    model.weights = "model"
    if found.ema is not None:
        average = {name.removeprefix("clip."): value for name, value in load_file(found.ema).items()}
        try:
            model.clip.load_state_dict(average)
        except RuntimeError as error:
            raise UserError(f"{found.ema} does not fit the model: {_short(error)}") from error
        model.weights = "ema"


def _short(error: BaseException) -> str:
    """The first facts of torch's long messages: of a mismatch, the first keys."""
    lines = [line.strip() for line in str(error).splitlines()]
    if lines and lines[0].startswith("Error(s) in loading"):
        lines = lines[1:]
    return "; ".join(line if len(line) <= 160 else line[:157] + "..." for line in lines[:3]) or type(error).__name__


def _lock(model: TwoTower, options: ModelOptions) -> None:
    for tower, wanted in (("image", options.lock_image), ("text", options.lock_text)):
        if wanted is not False:
            lock(model.clip, tower, 0 if wanted is True else wanted)
