"""From the recipe's section ``model`` to open_clip's ``{"model_cfg", "preprocess_cfg"}``."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from vlp import resolve
from vlp.encoders import image_tower, source, text_tower
from vlp.encoders.options import ModelOptions
from vlp.encoders.source import Source
from vlp.types import UserError

_KEYS = (
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


def of_source(found: Source) -> dict[str, Any]:
    """The configuration that ``found`` brings, with open_clip's defaults for pictures filled in."""
    assert found.model_cfg is not None
    preprocess_cfg = _pictures(found)
    return {"model_cfg": _completed(found.model_cfg), "preprocess_cfg": preprocess_cfg} | _beside(found)


def of_options(options: ModelOptions, found: Source | None, starts: Mapping[str, float]) -> dict[str, Any]:
    """The configuration a recipe asks for. ``found`` is what ``init`` names; for ``starts`` see `build`.

    ``correct_cls_mask`` is true for a CoCa from scratch: its text's class token sees no padding. open_clip (3.3.0) has
    that mask, but no configuration that asks for it; weights trained with its other one, a place off, keep that.
    """
    if options.config is not None:
        model_cfg = _custom(options.config)
    elif found is not None and found.model_cfg is not None and (options.name is None or found.is_tag):
        model_cfg = found.model_cfg
    elif options.name is not None:
        model_cfg = source.named_config(options.name)
    else:
        raise UserError(f"model.init: {options.init} is a lone weights file: add model.name or model.config")
    model_cfg = _completed(model_cfg)
    for name in ("logit_scale", "logit_bias"):
        wanted = getattr(options, f"init_{name}")
        if wanted is not None:
            model_cfg[f"init_{name}"] = wanted
        elif name in starts and model_cfg.get(f"init_{name}") is None:
            model_cfg[f"init_{name}"] = starts[name]
    preprocess_cfg = _pictures(found)
    preprocess_cfg = merge_preprocess_dict(preprocess_cfg, options.picture.model_dump(exclude_none=True))
    mode = preprocess_cfg["resize_mode"]
    if options.picture.fill_color is not None and mode != "longest":
        raise UserError(f"model.picture.fill_color has no effect with resize_mode '{mode}': remove it, or set longest")
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    if found is not None:
        if found.family is not None and (options.name is not None or options.config is not None):
            raise UserError(f"model.init: {options.init} brings its architecture: remove model.name and model.config")
        return config | _beside(found)
    has_cls = model_cfg["text_cfg"].get("embed_cls") and not text_tower.is_transformers(model_cfg)
    return config | ({"correct_cls_mask": True} if has_cls else {})


def _pictures(found: Source | None) -> dict[str, Any]:
    """How a model's pictures become pixels, where nothing is said by open_clip's defaults.

    Raises:
        UserError: a value that open_clip's transform cannot use, or not until the first picture comes.
    """
    said = found.preprocess_cfg if found is not None else {}
    try:
        cfg: dict[str, Any] = merge_preprocess_dict(PreprocessCfg(), said)
        sound = {
            "mean": len(cfg["mean"]) == 3 and all(math.isfinite(value) for value in cfg["mean"]),
            "std": len(cfg["std"]) == 3 and all(0 < value < math.inf for value in cfg["std"]),
            "interpolation": cfg["interpolation"] in ("bicubic", "bilinear"),
            "resize_mode": cfg["resize_mode"] in ("shortest", "longest", "squash"),
            "fill_color": isinstance(cfg["fill_color"], int),
            "mode": cfg["mode"] == "RGB",
        }
    except (TypeError, AttributeError, ValueError) as error:
        assert found is not None
        raise UserError(f"{found.described}: preprocess_cfg cannot be used ({error}): check the file") from error
    for key, is_sound in sound.items():
        if not is_sound:
            assert found is not None
            raise UserError(f"{found.described}: preprocess_cfg.{key} {cfg[key]!r} is none that open_clip can use")
    return cfg


def _beside(found: Source) -> dict[str, Any]:
    """What open_clip's configuration has no place for, where there is something to say."""
    said = {"correct_cls_mask": found.correct_cls_mask, "text_cleaning": found.text_cleaning}
    return {name: value for name, value in (said | {image_tower.KEY: found.image_tower}).items() if value}


def _completed(model_cfg: dict[str, Any]) -> dict[str, Any]:
    """A copy where a transformers text tower has its own tokenizer: another one's ids mean nothing."""
    model_cfg = deepcopy(model_cfg)
    text = model_cfg["text_cfg"]
    if text_tower.is_transformers(model_cfg):
        text["hf_tokenizer_name"] = text.get("hf_tokenizer_name") or text["hf_model_name"]
    return model_cfg


def _custom(given: dict[str, Any] | str) -> dict[str, Any]:
    """A model configuration given inline or as a JSON file, its keys checked."""
    where, config = "model.config", given
    if isinstance(given, str):
        where = f"model.config: {given}"
        try:
            config = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{where} cannot be read as JSON: {error}") from error
    if isinstance(config, dict):
        config = config.get("model_cfg", config)
    if not isinstance(config, dict):
        raise UserError(f"{where} is no mapping with embed_dim, vision_cfg and text_cfg")
    _check_keys(config, _KEYS, where)
    for key, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        if not isinstance(config.get(key), dict):
            raise UserError(f"{where}: {key} is missing: it describes one of the two towers")
        _check_keys(config[key], [f.name for f in dataclasses.fields(kind)], f"{where}.{key}")
    if not isinstance(config.get("embed_dim"), int):
        raise UserError(f"{where}: embed_dim is missing: the width of the common space, such as 512")
    return config


def _check_keys(given: dict[str, Any], known: Iterable[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'{resolve.nearest(str(key), list(known))}")
