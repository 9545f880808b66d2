"""How a model's pictures and texts become its inputs, said in a line and as a mapping to keep with results."""

from __future__ import annotations

from typing import Any

from open_clip.tokenizer import SimpleTokenizer

from vlp.data.transforms import PictureFormat
from vlp.encoders.special_tokens import padding_id
from vlp.encoders.two_tower import TwoTower

_RESIZE = {
    "shortest": "its shorter side resized, the centre cropped",
    "longest": "its longer side resized, the rest filled",
    "squash": "resized to this shape whatever its own",
}


def as_dict(model: TwoTower) -> dict[str, Any]:
    """``pictures`` as in open_clip's ``preprocess_cfg``; ``texts``: tokenizer, length in ids, padding, cleaning."""
    return {"pictures": of_pictures(model.picture_format), "texts": of_texts(model)}


def of_pictures(pictures: PictureFormat) -> dict[str, Any]:
    said: dict[str, Any] = {
        "size": list(pictures.size),
        "resize_mode": pictures.resize_mode,
        "interpolation": pictures.interpolation,
        "mean": [round(value, 6) for value in pictures.mean],
        "std": [round(value, 6) for value in pictures.std],
    }
    return said | ({"fill_color": pictures.fill_color} if pictures.resize_mode == "longest" else {})


def of_texts(model: TwoTower) -> dict[str, Any]:
    tokenizer: Any = model.tokenizer
    cleaning = model.openclip_config.get("text_cleaning")
    if cleaning is None:
        wanted = model.openclip_config["model_cfg"]["text_cfg"].get("tokenizer_kwargs") or {}
        cleaning = wanted.get("clean", "lower" if isinstance(tokenizer, SimpleTokenizer) else "whitespace")
    kind = "SimpleTokenizer" if isinstance(tokenizer, SimpleTokenizer) else type(tokenizer.tokenizer).__name__
    return {
        "tokenizer": kind,
        "length": tokenizer.context_length,
        "padding": padding_id(tokenizer),
        "cleaning": cleaning,
    }


def as_line(model: TwoTower) -> str:
    """Such as ``pictures: 224 x 224 pixels, its shorter side resized, ...; texts: 77 ids of SimpleTokenizer, ...``."""
    pictures, texts = of_pictures(model.picture_format), of_texts(model)
    height, width = pictures["size"]
    mean, std = (", ".join(f"{value:.4g}" for value in pictures[name]) for name in ("mean", "std"))
    return (
        f"pictures: {width} x {height} pixels, {_RESIZE[pictures['resize_mode']]} ({pictures['interpolation']}), "
        f"mean {mean}, std {std}; texts: {texts['length']} ids of {texts['tokenizer']}, filled up with "
        f"{texts['padding']}, cleaning: {texts['cleaning']}"
    )
