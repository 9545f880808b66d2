"""Reading pictures with their true captions: CLIP_benchmark's layout of retrieval, a file as COCO's or Karpathy's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlp.data.benchmark_sets import RetrievalSet, StoredFile, dataset_type, is_benchmark_directory, read_retrieval_set
from vlp.types import UserError

PICTURE_FOLDERS = (
    *(".", "images", "Images", "val2014", "train2014", "val2017"),
    *("flickr30k-images", "flickr30k_images", "Flicker8k_Dataset"),  # as they are unpacked
)
TEST = "test"  # of Karpathy's splits


def read_caption_set(path: Path) -> RetrievalSet:
    """The pictures of a directory, of COCO's annotations of captions, or of Karpathy's test split.

    COCO's are ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``, as those of NoCaps are,
    Karpathy's (COCO, Flickr8k and Flickr30k) ``{"images": [{"filename", "split", "sentences": [{"raw"}]}]}``. Pictures
    lie beside the file, or in a folder beside it or beside its folder.

    Raises:
        UserError: another layout, or the set is not whole.
    """
    if path.is_dir():
        if not is_benchmark_directory(path) or dataset_type(path) != "retrieval":
            raise UserError(
                f"{path} is no set of captions: give a directory in CLIP_benchmark's layout of retrieval (test/0.tar "
                "with dataset_type.txt), or a JSON file of captions as COCO's"
            )
        return read_retrieval_set(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        is_karpathy = any("sentences" in image for image in content["images"])
        captions = dict(karpathy_captions(content) if is_karpathy else official_captions(content))
    except KeyError as error:
        raise UserError(f"{path} is no file of captions as COCO's or Karpathy's: {error} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or no file of captions ({error}): copy it again") from error
    found = RetrievalSet([], [], [])
    for file, lines in captions.items():
        lines = _clean(lines)
        if lines:
            _add(found, picture_beside(path, file), lines)
    if not found.images:
        raise UserError(f"{path} has no picture with a caption" + (f" in its split '{TEST}'" if is_karpathy else ""))
    return found


def whole_set(
    source: Path, captions: Mapping[str, Sequence[str]], picture: Callable[[str], StoredFile]
) -> RetrievalSet:
    """Every picture of ``captions`` with all its captions that are not empty.

    Raises:
        UserError: there is no picture, or one without a list of captions.
    """
    found = RetrievalSet([], [], [])
    for name, lines in captions.items():
        if not isinstance(name, str) or not isinstance(lines, list) or not all(isinstance(one, str) for one in lines):
            raise UserError(f"{source} has no list of captions in words for the picture {name}: copy it again")
        texts = _clean(lines)
        if not texts:
            raise UserError(f"{source} has no caption for the picture {name}: add one, or leave the picture out")
        _add(found, picture(name), texts)
    if not found.images:
        raise UserError(f"{source} names no picture with its captions: copy it again")
    return found


def _clean(lines: Sequence[str]) -> list[str]:
    """Captions on one line each, empty ones dropped."""
    return [text for line in lines if (text := " ".join(line.split()))]


def _add(found: RetrievalSet, image: StoredFile, texts: Sequence[str]) -> None:
    found.image_of_text.extend([len(found.images)] * len(texts))
    found.images.append(image)
    found.texts.extend(texts)


def official_captions(content: Any) -> Iterator[tuple[str, list[str]]]:
    """Pictures and their captions, of COCO's ``images`` and ``annotations``."""
    captions: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        captions[row["image_id"]].append(row["caption"])
    yield from ((image["file_name"], captions[image["id"]]) for image in content["images"])


def karpathy_captions(content: Any) -> Iterator[tuple[str, list[str]]]:
    """Pictures of the test split and their captions, of Karpathy's ``images``."""
    for image in content["images"]:
        if image["split"] == TEST:
            folder = f"{image['filepath']}/" if "filepath" in image else ""
            yield folder + image["filename"], [sentence["raw"] for sentence in image["sentences"]]


def picture_beside(path: Path, file: str) -> StoredFile:
    """The picture that the file ``path`` names: beside it, beside its folder, or in a usual folder there."""
    for root in (path.parent, path.parent.parent):
        for folder in PICTURE_FOLDERS:
            for name in dict.fromkeys((file, Path(file).name)):
                found = root / folder / name
                if found.is_file():
                    return StoredFile(found, str(found))
    raise UserError(
        f"{path} names the picture {file}, which is neither beside it nor in {path.parent}/images: copy it there"
    )
