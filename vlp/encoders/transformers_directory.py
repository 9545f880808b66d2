"""A directory as transformers writes it, with a CLIPModel or a SiglipModel, read as a model of open_clip.

Nothing of it is executed: weights are safetensors, or plain tensors in ``pytorch_model.bin``, and code that a
configuration or a tokenizer brings along (``auto_map``) is refused.
"""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vlp.encoders import hub, image_tower, transformers_names, transformers_pictures
from vlp.encoders.source import Source
from vlp.encoders.transformers_names import Family
from vlp.types import UserError

CONFIG_FILE = "config.json"
WEIGHTS_FILES = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_FAMILIES: dict[str, Family] = {"clip": "clip", "siglip": "siglip"}
_CURED = {
    "siglip2": "whose pictures keep their shape (naflex), which open_clip cannot: take a SigLIP2 of one size",
    "clip_vision_model": "an image tower alone",
    "clip_text_model": "a text tower alone",
    "siglip_vision_model": "an image tower alone",
    "siglip_text_model": "a text tower alone",
}
# transformers' activation -> QuickGELU?, and open_clip's act_kwargs where it is the approximation by tanh
_ACTIVATIONS: dict[str, tuple[bool, dict[str, str] | None]] = {
    "quick_gelu": (True, None),
    "gelu": (False, None),
    "gelu_pytorch_tanh": (False, {"approximate": "tanh"}),
    "gelu_new": (False, {"approximate": "tanh"}),
}
_NORM_EPS = 1e-5  # open_clip's where nothing is said
_TIMM_NORM_EPS = 1e-6


def from_hub(snapshot: hub.Snapshot, described: str) -> Source:
    """The same of a repository: its files are downloaded where the cache lacks them.

    Raises:
        UserError: as `read`, and if a file cannot be had.
    """
    directory = snapshot.require(CONFIG_FILE).parent
    _family(_json(directory / CONFIG_FILE), described)  # before anything large is downloaded
    weights = snapshot.require(*WEIGHTS_FILES)
    for name in _parts(weights):
        snapshot.require(name)
    for name in (*transformers_pictures.FILES, *hub.TOKENIZER_FILES):
        snapshot.file(name)
    return read(directory, f"hf-hub:{snapshot.repository}@{snapshot.commit}")


def read(directory: Path, described: str) -> Source:
    """
    Raises:
        UserError: another kind of model, an architecture that open_clip does not have, or a file is missing.
    """
    from transformers import CLIPConfig, SiglipConfig

    family = _family(_json(directory / CONFIG_FILE), described)
    weights = next((directory / name for name in WEIGHTS_FILES if (directory / name).is_file()), None)
    if weights is None:
        raise UserError(f"{described} has {CONFIG_FILE} but no weights ({WEIGHTS_FILES[0]})")
    try:
        kind = CLIPConfig if family == "clip" else SiglipConfig
        config = kind.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        raise UserError(f"{described}: {CONFIG_FILE} cannot be used: {' '.join(str(error).split())[:200]}") from error
    text, vision = config.text_config, config.vision_config
    where = f"{described}: {CONFIG_FILE} has"
    _check_towers(text, vision, where)
    tower, model_cfg = (None, _clip(config, where)) if family == "clip" else _siglip(config, where)
    model_cfg["text_cfg"]["hf_tokenizer_name"] = str(directory)
    return Source(
        described,
        weights,
        model_cfg,
        transformers_pictures.preprocess_cfg(directory, vision.image_size),
        directory,
        family=family,
        image_tower=tower,
        text_cleaning="none",
    )


def _check_towers(text: Any, vision: Any, where: str) -> None:
    for tower, name in ((text, "text_config"), (vision, "vision_config")):
        if tower.attention_dropout:
            raise UserError(f"{where} {name}.attention_dropout {tower.attention_dropout}, which open_clip lacks")
        if tower.hidden_act not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise UserError(f"{where} {name}.hidden_act '{tower.hidden_act}', where open_clip has {known}")
        heads, width = tower.num_attention_heads, tower.hidden_size
        if not heads or not width or width % heads:
            raise UserError(f"{where} {name}.num_attention_heads {heads}, no divisor of hidden_size {width}")
    for key in ("image_size", "patch_size"):
        value = getattr(vision, key)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{where} vision_config.{key} {value}, where one number from 1 on is understood")
    if vision.num_channels != 3:
        raise UserError(f"{where} vision_config.num_channels {vision.num_channels}, where open_clip sees 3")


def load_weights(clip: nn.Module, found: Source) -> None:
    """Fill ``clip``, made by ``found.model_cfg``, in fp32 whatever the file's type.

    Raises:
        UserError: a file cannot be read, or its weights are not those of the architecture.
    """
    assert found.model_cfg is not None
    assert found.family is not None
    values: dict[str, Tensor] = {}
    for name in _parts(found.weights) or [found.weights.name]:
        values |= _tensors(found.weights.with_name(name))
    layers = found.image_tower["model_args"]["depth"] if found.image_tower else found.model_cfg["vision_cfg"]["layers"]
    text = "text." if hasattr(clip, "text") else ""
    table = transformers_names.rows(found.family, layers, found.model_cfg["text_cfg"]["layers"], text)
    shapes = {name: value.shape for name, value in clip.state_dict().items()}
    try:
        converted = transformers_names.convert(values, table, shapes, "ours")
    except UserError as error:
        raise UserError(f"{found.weights} does not fit the model: {error}") from error
    whole = next((name for name, value in converted.items() if not value.is_floating_point()), None)
    if whole is not None:
        raise UserError(f"{found.weights} has {converted[whole].dtype} in {whole}: take weights that are not quantised")
    clip.load_state_dict({name: value.float() for name, value in converted.items()})


def _family(config: dict[str, Any], described: str) -> Family:
    kind = str(config.get("model_type"))
    if kind not in _FAMILIES:
        reason = _CURED.get(kind, f"where vlp reads {' and '.join(_FAMILIES)}")
        raise UserError(f"{described} holds a transformers model of the type '{kind}', {reason}")
    return _FAMILIES[kind]


def _clip(config: Any, where: str) -> dict[str, Any]:
    text, vision = config.text_config, config.vision_config
    quick = {_ACTIVATIONS[tower.hidden_act][0] for tower in (text, vision)}
    if len(quick) > 1:
        acts = f"'{vision.hidden_act}' and '{text.hidden_act}'"
        raise UserError(f"{where} hidden_act {acts}, where open_clip has one for both towers")
    towers = {
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": _mlp_ratio(vision),
            **_layer_options(vision),
        },
        "text_cfg": _text_cfg(text) | _pooling(text, where),
    }
    return {"embed_dim": config.projection_dim, **towers, "quick_gelu": quick == {True}}


def _pooling(text: Any, where: str) -> dict[str, Any]:
    """Where the feature of a text is taken: by older configurations at its largest id, by newer ones at its end."""
    if not isinstance(text.eos_token_id, int):
        raise UserError(f"{where} text_config.eos_token_id {text.eos_token_id}, where one id is understood")
    if text.eos_token_id in (2, text.vocab_size - 1):
        return {}
    return {"pool_type": "eos", "eos_id": text.eos_token_id}


def _siglip(config: Any, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    text, vision = config.text_config, config.vision_config
    for tower, name in ((text, "text_config"), (vision, "vision_config")):
        if tower.hidden_act == "quick_gelu":
            raise UserError(f"{where} {name}.hidden_act quick_gelu, which timm's towers do not have")
    if not getattr(vision, "vision_use_head", True):
        raise UserError(f"{where} vision_config.vision_use_head false, so that no feature of a picture is defined")
    eps = vision.layer_norm_eps
    if not math.isclose(eps, _TIMM_NORM_EPS):
        raise UserError(f"{where} vision_config.layer_norm_eps {eps}, where timm has {_TIMM_NORM_EPS}")
    if text.projection_size != vision.hidden_size:
        raise UserError(
            f"{where} text_config.projection_size {text.projection_size}, but features of pictures have "
            f"{vision.hidden_size} dimensions"
        )
    act_layer = "gelu_tanh" if _ACTIVATIONS[vision.hidden_act][1] else "gelu"
    tower = image_tower.siglip_vit(
        vision.image_size,
        vision.patch_size,
        vision.hidden_size,
        vision.num_hidden_layers,
        vision.num_attention_heads,
        _mlp_ratio(vision),
        act_layer,
    )
    return tower, {
        "embed_dim": vision.hidden_size,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": vision.image_size,
            "timm_model_name": tower["architecture"],
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {**_text_cfg(text), "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    }


def _text_cfg(text: Any) -> dict[str, Any]:
    return {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_ratio": _mlp_ratio(text),
        **_layer_options(text),
    }


def _layer_options(tower: Any) -> dict[str, Any]:
    approximation = _ACTIVATIONS[tower.hidden_act][1]
    same = math.isclose(tower.layer_norm_eps, _NORM_EPS)
    return ({} if same else {"norm_kwargs": {"eps": tower.layer_norm_eps}}) | (
        {"act_kwargs": dict(approximation)} if approximation else {}
    )


def _mlp_ratio(tower: Any) -> float:
    """Of which open_clip and timm make the width again by rounding down."""
    width, inner = tower.hidden_size, tower.intermediate_size
    ratio = inner / width
    return ratio if int(width * ratio) == inner else (inner + 0.5) / width


def _parts(weights: Path) -> list[str]:
    """The files that an index names; none for a file that holds all."""
    if not weights.name.endswith(".index.json"):
        return []
    named = _json(weights).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise UserError(f"{weights} has no 'weight_map' that names files of weights")
    for name in named.values():
        if not isinstance(name, str) or not name or name == ".." or Path(name).name != name:
            raise UserError(f"{weights} names {name!r}, which does not lie beside it")
    return sorted(set(named.values()))


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path} cannot be read (safetensors, or plain tensors in .bin): {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise UserError(f"{path} holds something else than tensors by name: it is no file of weights")
    return values


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object")
    return content
