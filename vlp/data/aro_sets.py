"""Reading ARO's VG-Relation and VG-Attribution: parts of pictures, each with a true and a false caption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlp.data.benchmark_sets import StoredFile
from vlp.data.choice_sets import ChoiceSet, Item, choice_set, read_json
from vlp.data.samples import MAX_PIXELS, orientation
from vlp.types import UserError

RELATION = "visual_genome_relation.json"
ATTRIBUTION = "visual_genome_attribution.json"
SOURCE = "github.com/mertyg/vision-language-models-are-bows"
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")

_TURN_BACK = {  # from upright to stored, by EXIF's number of the orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class CroppedFile(StoredFile):
    """The part of a picture inside ``box``: left, top, right, bottom, in pixels; black where it leaves the picture.

    ``path`` is a file by itself. Boxes count the pixels as the file stores them, so these are not turned upright by an
    EXIF tag; neither does ARO's own reader.
    """

    box: tuple[float, float, float, float] = (0, 0, 0, 0)

    def load(self) -> Image.Image:
        whole = super().load()
        with Image.open(self.path) as stored:
            turn_back = _TURN_BACK.get(orientation(stored))
        if turn_back is not None:
            whole = whole.transpose(turn_back)
        left, top, right, bottom = self.box
        if left >= whole.width or top >= whole.height or right <= 0 or bottom <= 0:
            raise UserError(
                f"{self.name} has {whole.width} x {whole.height} pixels, and the part from ({left:g}, {top:g}) to "
                f"({right:g}, {bottom:g}) is outside: copy the pictures again from {SOURCE}"
            )
        return whole.crop(self.box)


def is_file_or_in(path: Path, names: tuple[str, ...]) -> bool:
    """Whether ``path`` is a file of one of these names, or a directory that holds one."""
    return path.name in names if path.is_file() else any((path / name).is_file() for name in names)


def read_crops(path: Path, name: str) -> ChoiceSet:
    """The items of the JSON file ``name``, which ``path`` is or holds; pictures lie in ``images/`` beside it.

    The category is the relation, or both attributes as ARO joins them: ``ATTRIBUTE_ATTRIBUTE``.
    """
    file = path if path.is_file() else path / name
    items = read_json(file)
    if not isinstance(items, list) or not items:
        raise UserError(f"{file} is no list of items: copy it again from {SOURCE}")
    folder = file.parent / "images"
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: ARO's pictures go there, vgr_vga_images.zip from {SOURCE}")
    pictures: dict[str, Path] = {}
    found = []
    for number, item in enumerate(items):
        where = f"item {number} of {file}"
        image, true, false = _texts(item, ("image_path", "true_caption", "false_caption"), where)
        category = _attributes(item, where) if name == ATTRIBUTION else _texts(item, ("relation_name",), where)[0]
        if image not in pictures:
            pictures[image] = folder / image
            if not pictures[image].is_file():
                raise UserError(f"{pictures[image]} is missing, {where}: copy vgr_vga_images.zip from {SOURCE}")
        picture = CroppedFile(pictures[image], str(pictures[image]), box=_box(item, where))
        found.append(Item(picture, true, [false], category))
    return choice_set(found)


def _texts(item: Any, names: Sequence[str], where: str) -> list[str]:
    for name in names:
        if not isinstance(item, dict) or not isinstance(item.get(name), str) or not item[name]:
            raise UserError(f"{where} has no {name}: copy the file again from {SOURCE}")
    return [item[name] for name in names]


def _attributes(item: dict[str, Any], where: str) -> str:
    attributes = item.get("attributes")
    if (
        not isinstance(attributes, list)
        or len(attributes) != 2
        or not all(isinstance(a, str) and a for a in attributes)
    ):
        raise UserError(f"{where} needs two attributes: copy the file again from {SOURCE}")
    return "_".join(attributes)


def _box(item: dict[str, Any], where: str) -> tuple[float, float, float, float]:
    try:
        left, top, width, height = (item[name] + 0 for name in BOX)
        finite = all(map(math.isfinite, (left, top, left + width, top + height)))
    except (KeyError, TypeError, OverflowError):
        finite = False
    if not finite:
        raise UserError(f"{where} needs the numbers {', '.join(BOX)}: copy the file again from {SOURCE}")
    # As Pillow rounds the corners of what it cuts out.
    width_px, height_px = round(left + width) - round(left), round(top + height) - round(top)
    if width_px <= 0 or height_px <= 0 or width_px * height_px > MAX_PIXELS:
        raise UserError(f"{where} has a box of {width:g} x {height:g} pixels: copy the file again from {SOURCE}")
    return left, top, left + width, top + height
