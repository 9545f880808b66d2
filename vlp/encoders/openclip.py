"""Build, load and write two-tower models in open_clip's own terms."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_checkpoint
from open_clip.model import set_model_preprocess_cfg
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlp import distributed
from vlp.encoders import captioner, config, hub, image_tower, lora, source, text_tower, tokens
from vlp.encoders.captioner import CaptionerOptions, CaptioningHead
from vlp.encoders.fusion import FusionTower
from vlp.encoders.locks import lock
from vlp.encoders.options import ModelOptions
from vlp.encoders.source import CAPTIONER_FILE, CONFIG_FILE, WEIGHTS_FILE, Source
from vlp.encoders.special_tokens import padding_id
from vlp.encoders.two_tower import TwoTower
from vlp.options import explain
from vlp.types import UserError

__all__ = [
    "WEIGHTS_FILE",
    "ModelOptions",
    "build",
    "describe_openclip_directory",
    "load",
    "outline",
    "save_openclip_directory",
]

_ALL_PARTS = frozenset({"captions", "masked_text"})


def build(
    options: ModelOptions, seed: int, starts: Mapping[str, float] | None = None, needs: frozenset[str] = _ALL_PARTS
) -> TwoTower:
    """The model of a recipe, in training mode; its random values depend on ``seed`` alone.

    ``starts`` gives ``logit_scale`` (the logarithm) and ``logit_bias`` to a model that gets them neither from
    the options nor from its configuration or weights. ``needs`` are those of the objectives: without ``captions`` there
    is no captioning head, and CoCa's own is frozen; without ``masked_text`` the fusion tower has no head for words.

    Raises:
        UserError: an unknown name or key, weights that cannot be had or do not fit.
    """
    found = source.of_init(options.init, options.name) if options.init else None
    openclip_config = config.of_options(options, found, starts or {})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _assemble(openclip_config, found, pretrained_towers=found is None)
    if found is not None:
        _load_weights(model, found)
        _start_logits(model, options)
    if options.init_image is not None:
        _load_image_tower(model, options.init_image)
    _lock(model, options)
    with torch.random.fork_rng(devices=[]):  # on their own: the towers start the same with them and without
        torch.default_generator.manual_seed(distributed.seed_of(seed, "captioner"))
        _add_captioner(model, options, found, needs)
        torch.default_generator.manual_seed(distributed.seed_of(seed, "fusion"))
        _add_fusion(model, options, needs)
        torch.default_generator.manual_seed(distributed.seed_of(seed, "lora"))
        if options.lora is not None:
            lora.add(model.clip, options.lora)
    return model.train()


def load(reference: str, device: str | torch.device = "cpu") -> TwoTower:
    """The model that a MODEL argument names, in evaluation mode, with a run's average (EMA) where it has one.

    Raises:
        UserError: nothing is there, or it cannot be loaded; the message says what was looked for.
    """
    found = source.of_reference(reference)
    model = _assemble(config.of_source(found), found, pretrained_towers=False)
    _load_weights(model, found)
    if found.captioner_cfg is not None:
        _load_captioner(_attach(model, _captioner_options(found)), found)
    return model.to(device).eval()


def outline(
    options: ModelOptions, starts: Mapping[str, float] | None = None, needs: frozenset[str] = _ALL_PARTS
) -> TwoTower:
    """What `build` would make of the same arguments, on torch's ``meta`` device: all sizes, no memory, no weights.

    Raises:
        UserError: as `build`, but for weights that do not fit.
    """
    found = source.of_init(options.init, options.name) if options.init else None
    openclip_config = config.of_options(options, found, starts or {})
    model = _assemble(openclip_config, found, pretrained_towers=False, device=torch.device("meta"))
    _lock(model, options)
    with torch.device("meta"):
        _add_captioner(model, options, found, needs)
        _add_fusion(model, options, needs)
        if options.lora is not None:
            lora.add(model.clip, options.lora)
    return model.train()


def save_openclip_directory(
    model: TwoTower,
    directory: str | Path,
    state_dict: dict[str, Tensor] | None = None,
    final: Path | None = None,
) -> None:
    """Write what ``open_clip.create_model_and_transforms("local-dir:DIRECTORY")`` and its tokenizer need.

    ``state_dict`` (of ``model.clip``) replaces the model's own values; ``final`` as in `describe_openclip_directory`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    describe_openclip_directory(model, directory, final)
    values = model.clip.state_dict() if state_dict is None else state_dict
    save_file(_unshared(values), directory / WEIGHTS_FILE, metadata={"format": "pt"})
    if model.captioner is not None:  # open_clip reads neither this file nor its part of the configuration
        save_file(_unshared(model.captioner.state_dict()), directory / CAPTIONER_FILE)


def describe_openclip_directory(model: TwoTower, directory: Path, final: Path | None = None) -> None:
    """The same without the weights: configuration and tokenizer.

    open_clip wants the full path of the configuration of a transformers text tower: ``final`` is where the directory
    will lie when it is renamed later; without it the place the tower came from is written.
    """
    written = deepcopy(model.openclip_config)
    if text_tower.is_transformers(written["model_cfg"]):
        text_tower.write(model.clip, written["model_cfg"], directory, final)
    if image_tower.KEY in written:
        image_tower.write(written, directory, final)
    if isinstance(model.tokenizer, text_tower.HFTokenizer):
        model.tokenizer.save_pretrained(directory)
    text = json.dumps(written, indent=2, ensure_ascii=False)
    (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def _unshared(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two share memory: safetensors refuses tied weights."""
    seen: set[int] = set()
    result = {}
    for name, value in values.items():
        value = value.detach().contiguous()
        place = value.untyped_storage().data_ptr()
        result[name] = value.clone() if place in seen else value
        seen.add(place)
    return result


def _assemble(
    openclip_config: dict[str, Any],
    found: Source | None,
    pretrained_towers: bool,
    device: torch.device | None = None,
) -> TwoTower:
    """The towers with random values and their tokenizer.

    With ``pretrained_towers``, transformers and timm towers get the values their configuration asks for.
    """
    openclip_config = deepcopy(openclip_config)
    directory = found.directory if found else None
    tokenizer = text_tower.tokenizer(openclip_config["model_cfg"], directory, openclip_config.get("text_cleaning"))
    with image_tower.named(openclip_config) as described:
        clip = _construct(openclip_config["model_cfg"], directory, pretrained_towers, device, described)
    text_tower.check_vocabulary(tokenizer, clip)
    openclip_config["preprocess_cfg"]["size"] = clip.visual.image_size
    set_model_preprocess_cfg(clip, openclip_config["preprocess_cfg"])
    if openclip_config.get("correct_cls_mask"):
        _check_padding(tokenizer, clip.text)
        clip.text.correct_cls_mask = True
    if captioner.is_coca(clip) and found is None and device is None:
        captioner.initialise(clip.text_decoder)
    return TwoTower(clip, tokenizer, openclip_config)


def _check_padding(tokenizer: Any, tower: Any) -> None:
    """A class token is kept from padding by its id."""
    if tower.pad_id != padding_id(tokenizer):
        raise UserError(
            f"model.config.text_cfg.pad_id is {tower.pad_id}, but the tokenizer fills texts up with "
            f"{padding_id(tokenizer)}, which the class token must not see: set it"
        )


def _construct(
    model_cfg: dict[str, Any],
    directory: Path | None,
    pretrained_towers: bool,
    device: torch.device | None,
    timm_name: str | None = None,
) -> Any:
    """open_clip's model class for ``model_cfg``, chosen and called as ``open_clip.create_model`` does."""
    arguments = deepcopy(model_cfg)
    vision, text = arguments["vision_cfg"], arguments["text_cfg"]
    custom_text = arguments.pop("custom_text", False)
    if timm_name is not None:
        vision["timm_model_name"] = timm_name
    vision["timm_model_pretrained"] = pretrained_towers and vision.get("timm_model_pretrained", False)
    if vision["timm_model_pretrained"]:
        hub.spare_retries()
    if text_tower.is_transformers(model_cfg):
        custom_text = True
        text["hf_model_pretrained"] = pretrained_towers and text.get("hf_model_pretrained", True)
        text["hf_model_name"] = text_tower.place(text["hf_model_name"], directory)
        described = text_tower.local(text["hf_model_name"], "config.json")
        text_tower.check_kind(described)
        if not text["hf_model_pretrained"]:
            text["hf_model_name"] = described
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    if "multimodal_cfg" in arguments:
        kind = open_clip.CoCa
    if kind is open_clip.CLIP and text.get("embed_cls"):
        raise UserError("model.config.text_cfg.embed_cls: a text tower with a class token wants custom_text: true")
    if isinstance(vision.get("attentional_pool"), str):
        raise UserError(
            f"model.config.vision_cfg.attentional_pool: '{vision['attentional_pool']}' is unfinished in open_clip "
            "3.3.0, which gives features of no use then: write true"
        )
    place: AbstractContextManager[Any] = device if device is not None else nullcontext()
    try:
        with place:
            clip = kind(**arguments)
    except (OSError, TypeError, ValueError, RuntimeError, AssertionError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"model: open_clip cannot build these towers: {reason}") from error
    if kind is open_clip.CoCa and not all(getattr(t, "output_tokens", False) for t in (clip.visual, clip.text)):
        raise UserError(
            "model: open_clip's CoCa reads the tokens of its towers: choose a ViT, and set output_tokens: true in "
            "vision_cfg and in text_cfg"
        )
    return clip.float()  # transformers keeps half-precision weights as they are stored; training wants fp32


def _load_weights(model: TwoTower, found: Source) -> None:
    if found.family is not None:
        from vlp.encoders import transformers_directory

        transformers_directory.load_weights(model.clip, found)
        model.weights = "model"
        return
    try:
        load_checkpoint(model.clip, str(found.weights), strict=True, weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, EOFError, OSError) as error:
        raise UserError(
            f"{found.weights} cannot be read (safetensors, or plain tensors in .pt): {_short(error)}"
        ) from error
    except (RuntimeError, AssertionError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{found.weights} does not fit the model: {_short(error)}") from error
    model.weights = "model"
    if found.ema is not None:
        _load_average(model.clip, "", found.ema)
        model.weights = "ema"


def _load_image_tower(model: TwoTower, reference: str) -> None:
    """That of another model, with its projection; pictures must be made for it as they are for ``model``."""
    other = load(reference)
    if other.picture_format != model.picture_format:
        raise UserError(
            f"model.init_image: the pictures of {reference} are made otherwise ({other.picture_format}): write so in "
            "model.picture and vision_cfg.image_size"
        )
    try:
        model.clip.visual.load_state_dict(other.clip.visual.state_dict())
    except RuntimeError as error:
        raise UserError(
            f"model.init_image: the image tower of {reference} is another than that of model.config: {_short(error)}"
        ) from error


def _load_average(module: nn.Module, prefix: str, path: Path) -> None:
    try:
        module.load_state_dict(_below(prefix, load_file(path)))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise UserError(f"{path} does not fit the model: {_short(error)}") from error


def _start_logits(model: TwoTower, options: ModelOptions) -> None:
    """Values of the options win over the weights; open_clip fills a bias that the weights lack with zero."""
    clip, model_cfg = model.clip, model.openclip_config["model_cfg"]
    if options.init_logit_scale is not None:
        clip.logit_scale.data.fill_(options.init_logit_scale)
    if clip.logit_bias is not None and (options.init_logit_bias is not None or not clip.logit_bias.any()):
        clip.logit_bias.data.fill_(model_cfg["init_logit_bias"])


def _lock(model: TwoTower, options: ModelOptions) -> None:
    for tower, wanted in (("image", options.lock_image), ("text", options.lock_text)):
        if wanted is not False:
            lock(model.clip, tower, 0 if wanted is True else wanted)


def _add_captioner(model: TwoTower, options: ModelOptions, found: Source | None, needs: frozenset[str]) -> None:
    """The head of ``found``, or a new one where ``options`` ask for it."""
    coca, tells = captioner.is_coca(model.clip), "captions" in needs
    if coca and options.captioner is not None:
        raise UserError("model.captioner has no effect on a CoCa, which tells captions itself: remove it")
    if coca and not tells:
        model.clip.text_decoder.requires_grad_(False)
    stored = None if found is None or found.captioner_cfg is None else _captioner_options(found)
    wanted = options.captioner or stored
    if coca or not tells or wanted is None:
        return
    if stored not in (None, wanted):
        raise UserError(
            f"model.captioner differs from the captioning head of {options.init}: leave it out to go on with that, or "
            f"take captioner_cfg out of {CONFIG_FILE} there to begin with a new one"
        )
    head = _attach(model, wanted)
    if found is not None and stored is not None and model.device.type != "meta":
        _load_captioner(head, found)


def _attach(model: TwoTower, options: CaptionerOptions) -> CaptioningHead:
    tower, text_width = getattr(model.clip, "text", model.clip), 0
    if not options.text_layers:
        captioner.check_causal(tower, coca=False)
        text_width = tower.transformer.width
    tokens.check(model, frozenset({"image_tokens"}))
    image_width, places = tokens.patches(model.clip.visual, model.picture_format.size)
    length = model.tokenizer.context_length  # type: ignore[attr-defined]
    model.captioner = CaptioningHead(options, image_width, places, text_width, tower.vocab_size, length)
    model.openclip_config["captioner_cfg"] = options.model_dump()
    return model.captioner


def _captioner_options(found: Source) -> CaptionerOptions:
    try:
        return CaptionerOptions.model_validate(found.captioner_cfg)
    except ValidationError as error:
        raise explain(error, CaptionerOptions, f"{found.described}: captioner_cfg") from None


def _load_captioner(head: CaptioningHead, found: Source) -> None:
    """Its weights, or their average where ``found`` has one."""
    path = found.captioner
    assert path is not None
    if not path.is_file():
        raise UserError(f"{path} is missing, the weights of the captioning head that {CONFIG_FILE} describes")
    try:
        head.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise UserError(f"{path} does not fit the captioning head: {_short(error)}") from error
    if found.ema is not None:
        _load_average(head, TwoTower.HEAD, found.ema)


def _below(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a file that belong to the module at ``prefix``, under its own names."""
    if not prefix:
        return {name: value for name, value in values.items() if not name.startswith(TwoTower.HEAD)}
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _add_fusion(model: TwoTower, options: ModelOptions, needs: frozenset[str]) -> None:
    if options.fusion is not None:
        vocab_size = getattr(model.clip, "text", model.clip).vocab_size if "masked_text" in needs else None
        model.fusion = FusionTower(options.fusion, model.openclip_config["model_cfg"]["embed_dim"], vocab_size)


def _short(error: BaseException) -> str:
    """The first facts of torch's long messages: of a mismatch, the first keys."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Error(s) in loading"):
        lines = lines[1:]
    short = [line if len(line) <= 160 else line[:157] + "..." for line in lines[:3]]
    return "; ".join(short) or type(error).__name__
