"""How transformers' image processors and open_clip's ``preprocess_cfg`` say the same thing about pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlp.data.transforms import PictureFormat
from vlp.types import UserError

FILES = ("preprocessor_config.json", "processor_config.json")
_KINDS = ("CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor", "BitImageProcessor")
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers


def preprocess_cfg(directory: Path, image_size: int) -> dict[str, Any]:
    """What a transformers directory says about its pictures, in open_clip's words.

    Raises:
        UserError: it says nothing, or something that open_clip's transform cannot do.
    """
    from transformers import AutoImageProcessor

    if not any((directory / name).is_file() for name in FILES):
        raise UserError(f"{directory} has no {FILES[0]}, so how its pictures become pixels is not known: add the file")
    try:
        processor = AutoImageProcessor.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise UserError(f"{directory}: its {FILES[0]} cannot be read ({' '.join(str(error).split())[:160]})") from error
    kind = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
    if kind not in _KINDS:
        raise UserError(f"{directory}: pictures are made by {kind}, which vlp does not know ({', '.join(_KINDS)})")
    try:
        return _converted(processor.to_dict(), image_size, str(directory))
    except UserError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{directory}: its {FILES[0]} cannot be used ({error!r:.160})") from error


def _converted(said: Mapping[str, Any], image_size: int, where: str) -> dict[str, Any]:
    def refuse(key: str, reason: str) -> UserError:
        return UserError(f"{where}: {FILES[0]} has {key} {said.get(key)}, {reason}")

    if not said.get("do_resize", True):
        raise refuse("do_resize", "but every picture must come out in one size")
    if said.get("do_pad"):
        raise refuse("do_pad", "which open_clip's transform does not do")
    if not said.get("do_rescale", True) or not math.isclose(said.get("rescale_factor") or 0, 1 / 255, rel_tol=1e-6):
        raise refuse("rescale_factor", "where open_clip divides by 255 (do_rescale)")
    resample = said.get("resample")
    if resample not in _RESAMPLE:
        raise refuse("resample", "where open_clip knows 2 (bilinear) and 3 (bicubic)")
    size, crop = _sides(said.get("size")), _sides(said.get("crop_size")) if said.get("do_center_crop") else None
    if set(size) == {"shortest_edge"}:
        edge = size["shortest_edge"]
        if crop != {"height": edge, "width": edge}:
            raise refuse("crop_size", f"where open_clip crops to the size it resized to ({edge})")
        mode = "shortest"
    elif set(size) == {"height", "width"}:
        edge, mode = size["height"], "squash"
        if size["width"] != edge or crop not in (None, size):
            raise refuse("size", "where the image tower takes squares, and nothing may be cropped from them")
    else:
        raise refuse("size", "where open_clip wants shortest_edge, or height and width")
    if edge != image_size:
        raise refuse("size", f"but the image tower takes {image_size} pixels")
    mean, std = (said["image_mean"], said["image_std"]) if said.get("do_normalize", True) else ([0.0] * 3, [1.0] * 3)
    return {
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "interpolation": _RESAMPLE[resample],
        "resize_mode": mode,
    }


def _sides(size: Any) -> dict[str, int]:
    """Without the keys that are None, which newer releases write."""
    return {key: int(value) for key, value in dict(size or {}).items() if value is not None}


def processor_arguments(pictures: PictureFormat) -> dict[str, Any]:
    """What a CLIPImageProcessor is made of to do the same.

    Raises:
        UserError: it pads, or pictures are not square.
    """
    height, width = pictures.size
    if pictures.resize_mode == "longest":
        raise UserError("--to transformers: pictures are padded (resize_mode longest), which its processors do not do")
    if height != width:
        raise UserError(f"--to transformers: pictures have {width} x {height} pixels, where CLIPModel takes squares")
    squash = pictures.resize_mode == "squash"
    return {
        "do_resize": True,
        "size": {"height": height, "width": width} if squash else {"shortest_edge": height},
        "resample": next(number for number, name in _RESAMPLE.items() if name == pictures.interpolation),
        "do_center_crop": not squash,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pictures.mean),
        "image_std": list(pictures.std),
        "do_convert_rgb": True,
    }
