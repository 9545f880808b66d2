"""Reading COCO's 5K test pictures with all captions that are known to fit them: COCO, CxC and ECCV Caption.

A caption of COCO belongs to one picture, but describes others, too. The lists of such pairs go by the ids of COCO, so
these are kept until everything is found; then rows count.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vlp.data.benchmark_sets import StoredFile
from vlp.types import UserError

PACKAGE = "eccv_caption"
TEST_IDS = "coco_test_ids.npy"
COCO_CAPTIONS = "captions_val2014.json"
KARPATHY = "dataset_coco.json"
CAPTION_FILES = (COCO_CAPTIONS, f"annotations/{COCO_CAPTIONS}", KARPATHY)  # the first that is there is read
PICTURE_FOLDERS = ("val2014", "images", ".")

T = TypeVar("T")


@dataclass(frozen=True)
class Positives:
    """The queries of one direction and what is right for each of them.

    Attributes:
        queries: rows of the pictures (or texts) that ask.
        right: for each query the rows of the texts (or pictures) that are right.
        number: for each query how many the list names; some of them may be outside the test set.
    """

    queries: list[int]
    right: list[list[int]]
    number: list[int]


@dataclass(frozen=True)
class PositivesBothWays:
    image_to_text: Positives
    text_to_image: Positives


@dataclass(frozen=True)
class CocoTestSet:
    """The pictures of the test split and their captions; ``image_of_text`` is COCO's own, the lists add other pairs."""

    images: list[StoredFile]
    texts: list[str]
    image_of_text: list[int]
    cxc: PositivesBothWays
    eccv: PositivesBothWays


@dataclass(frozen=True)
class _Caption:
    text: str
    image_id: int
    filename: str


def is_coco_test(path: Path) -> bool:
    """Whether ``path`` is COCO's own file of captions, or holds it or ECCV Caption's lists, complete or not.

    Karpathy's file alone is a set of another kind (`vlp.data.karpathy_sets`), but is read where there is no other.
    """
    if path.is_file():
        return path.name == COCO_CAPTIONS
    return any((path / name).exists() for name in (*CAPTION_FILES[:-1], PACKAGE))


def read_coco_test(path: Path) -> CocoTestSet:
    """The test split: COCO's captions, ``val2014/`` and the lists of the package ``eccv_caption``.

    Args:
        path: the directory that holds them, or the file of captions in it.
    """
    directory = path
    if path.is_file():
        directory = path.parent.parent if path.parent.name == "annotations" else path.parent
    lists = _lists_folder(directory)
    file = path if path.is_file() else _captions_file(directory)
    captions = _read(file, _karpathy_captions if file.name == KARPATHY else _official_captions)
    caption_ids = _test_ids(lists / TEST_IDS)
    missing = [number for number in caption_ids if number not in captions]
    if missing:
        raise UserError(
            f"{file} lacks {len(missing)} of the {len(caption_ids)} captions of the test split, first id {missing[0]}: "
            f"take COCO's {COCO_CAPTIONS}, or Karpathy's {KARPATHY}, as it is"
        )
    image_row: dict[int, int] = {}
    images: list[StoredFile] = []
    for number in caption_ids:
        caption = captions[number]
        if caption.image_id not in image_row:
            image_row[caption.image_id] = len(images)
            images.append(_picture(directory, caption.filename))
    text_row = {number: row for row, number in enumerate(caption_ids)}
    return CocoTestSet(
        images,
        [captions[number].text for number in caption_ids],
        [image_row[captions[number].image_id] for number in caption_ids],
        _both_ways(lists, "cxc", image_row, text_row),
        _both_ways(lists, "eccv", image_row, text_row),
    )


def _lists_folder(directory: Path) -> Path:
    """``eccv_caption/`` of the directory, else the data of the installed package, which need not be imported for it."""
    if (directory / PACKAGE).is_dir():
        return directory / PACKAGE
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise UserError(
            f"the lists of ECCV Caption are neither installed nor in {directory}/{PACKAGE}: pip install {PACKAGE}, or "
            f"copy the folder {PACKAGE}/data of github.com/naver-ai/eccv-caption there"
        )
    return Path(package.origin).parent / "data"


def _captions_file(directory: Path) -> Path:
    for name in CAPTION_FILES:
        if (directory / name).is_file():
            return directory / name
    raise UserError(
        f"{directory}/{COCO_CAPTIONS} is missing: take it from COCO's annotations_trainval2014.zip (or Karpathy's "
        f"{KARPATHY}, which holds the same captions)"
    )


def _official_captions(content: Any) -> dict[int, _Caption]:
    """COCO's captions by their ids."""
    filename = {image["id"]: image["file_name"] for image in content["images"]}
    return {
        row["id"]: _Caption(row["caption"], row["image_id"], filename[row["image_id"]])
        for row in content["annotations"]
    }


def _karpathy_captions(content: Any) -> dict[int, _Caption]:
    return {
        sentence["sentid"]: _Caption(sentence["raw"], image["cocoid"], image["filename"])
        for image in content["images"]
        for sentence in image["sentences"]
    }


def _both_ways(lists: Path, name: str, image_row: Mapping[int, int], text_row: Mapping[int, int]) -> PositivesBothWays:
    return PositivesBothWays(
        _read(lists / f"{name}_image_to_caption.json", lambda table: _positives(table, image_row, text_row)),
        _read(lists / f"{name}_caption_to_image.json", lambda table: _positives(table, text_row, image_row)),
    )


def _positives(table: Mapping[str, Sequence[int]], query_row: Mapping[int, int], row: Mapping[int, int]) -> Positives:
    right = [[row[number] for number in dict.fromkeys(ids) if number in row] for ids in table.values()]
    return Positives([query_row[int(query)] for query in table], right, [len(set(ids)) for ids in table.values()])


def _test_ids(path: Path) -> list[int]:
    """The ids of the captions of the test split, picture after picture."""
    try:
        return [int(number) for number in np.load(path)]
    except FileNotFoundError:
        raise _missing_list(path) from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is not a whole array of NumPy ({error}): copy it again") from error


def _read(path: Path, parse: Callable[[Any], T]) -> T:
    try:
        return parse(json.loads(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        raise _missing_list(path) from None
    except KeyError as error:
        raise UserError(f"{path} is another file than it should be, {error} is missing: copy it again") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or another file than it should be ({error}): copy it again") from error


def _missing_list(path: Path) -> UserError:
    return UserError(f"{path} is missing: copy it from {PACKAGE}/data of github.com/naver-ai/eccv-caption")


def _picture(directory: Path, filename: str) -> StoredFile:
    for folder in PICTURE_FOLDERS:
        path = directory / folder / filename
        if path.is_file():
            return StoredFile(path, str(path))
    raise UserError(f"{directory}/val2014/{filename} is missing: copy it from COCO's val2014.zip")
