import json

import pytest
from PIL import Image

from vlp.data.caption_sets import read_caption_set
from vlp.types import UserError

OFFICIAL = {
    "images": [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}, {"id": 5, "file_name": "none.png"}],
    "annotations": [
        {"image_id": 3, "id": 1, "caption": "a green\nsquare "},
        {"image_id": 7, "id": 2, "caption": "a red square"},
        {"image_id": 3, "id": 3, "caption": "green"},
        {"image_id": 3, "id": 4, "caption": " "},
    ],
}
KARPATHY = {
    "images": [
        {"filename": "a.png", "filepath": "val2014", "split": "test", "sentences": [{"raw": "a red square"}]},
        {"filename": "b.png", "split": "test", "sentences": [{"raw": "a green square"}, {"raw": "green"}]},
        {"filename": "c.png", "split": "restval", "sentences": [{"raw": "a blue square"}]},
    ]
}


def write(directory, content, folders=("val2014", "images")):
    directory.mkdir()
    for folder, name, colour in zip(folders, ("a.png", "b.png"), ("red", "lime"), strict=True):
        (directory / folder).mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), colour).save(directory / folder / name)
    path = directory / "captions.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("content", [OFFICIAL, KARPATHY])
def test_files_of_captions_as_they_are_published(tmp_path, content):
    found = read_caption_set(write(tmp_path / "set", content))
    assert [image.load().getpixel((0, 0)) for image in found.images] == [(255, 0, 0), (0, 255, 0)]
    assert found.texts == ["a red square", "a green square", "green"]
    assert found.image_of_text == [0, 1, 1]


def test_annotations_may_lie_in_a_folder_of_their_own(tmp_path):
    path = write(tmp_path / "set", OFFICIAL, ("val2014", "val2014"))
    (tmp_path / "set/annotations").mkdir()
    moved = path.rename(tmp_path / "set/annotations/captions_val2014.json")
    assert len(read_caption_set(moved).images) == 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"images": []}, "'annotations' is missing"),
        ({"images": [], "annotations": []}, "has no picture with a caption$"),
        ({"images": KARPATHY["images"][2:]}, "no picture with a caption in its split 'test'"),
        ([1], "is damaged or no file of captions"),
        (
            {"images": [{"id": 1, "file_name": "x.png"}], "annotations": [{"image_id": 1, "caption": "x"}]},
            "names the picture x.png",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, sentence):
    path = write(tmp_path / "set", content)
    with pytest.raises(UserError, match=rf"captions\.json.*{sentence}"):
        read_caption_set(path)


def test_other_directories_are_refused(tmp_path):
    with pytest.raises(UserError, match="is no set of captions: give a directory in CLIP_benchmark's layout"):
        read_caption_set(tmp_path)
