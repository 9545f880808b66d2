"""``vlp caption`` on pictures: lines and JSON, what has no caption is named, and mistakes are one sentence."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlp.cli import main
from vlp.data.samples import decode_image
from vlp.encoders import openclip
from vlp.encoders.options import ModelOptions
from vlp.generation import captions_of
from vlp.generation_options import GenerationOptions

SHORT = ["--max-length", "6", "--beams", "1"]
SHORTLY = GenerationOptions(max_length=6, beams=1)


def draw(path: Path, seed: int) -> None:
    """Blobs of colour, different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A captioner of random weights, which says something else of each picture."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 1, "width": 64, "head_width": 32},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    head = {"layers": 1, "width": 16, "heads": 2, "queries": 4}
    directory = tmp_path_factory.mktemp("model")
    openclip.save_openclip_directory(openclip.build(ModelOptions(config=config, captioner=head), seed=0), directory)
    return str(directory)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed, name in enumerate(["b.png", "a.JPG", "more/deep/c.webp", "more/a.png"]):
        draw(folder / name, seed)
    (folder / "list.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def told(model: str, photos: Path) -> dict[str, str]:
    """What the model says of each of ``photos``, asked directly."""
    tower = openclip.load(model)
    names = ["a.JPG", "b.png", "more/a.png", "more/deep/c.webp"]
    pixels = torch.stack([tower.eval_transform(decode_image((photos / name).read_bytes())) for name in names])
    captions = captions_of(tower, pixels, SHORTLY)
    assert len(set(captions)) > 1, "a test that cannot tell pictures apart"
    return dict(zip(names, captions, strict=True))


@pytest.fixture
def caption(model: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``caption(*arguments)`` is the command; what it printed comes back."""

    def run(*arguments: object) -> str:
        main(["caption", model, *map(str, arguments), *SHORT])
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return run


def lines(captions: dict[str, str]) -> str:
    return "".join(f"{name}\t{caption}\n" for name, caption in captions.items())


def test_a_directory_gives_all_its_pictures_sorted_with_relative_names(
    caption: Callable[..., str], photos: Path, told: dict[str, str]
) -> None:
    assert caption(photos) == lines(told)
    assert caption(photos, "--batch-size", 3) == lines(told)


def test_several_inputs_keep_the_names_they_were_given(
    caption: Callable[..., str], photos: Path, told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    names = ["more/a.png", "more/deep/c.webp", "b.png"]
    assert caption("more", "b.png") == lines({name: told[name] for name in names})


def test_a_picture_is_known_by_its_content_where_its_name_says_nothing(
    caption: Callable[..., str], photos: Path, told: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "download").write_bytes((photos / "b.png").read_bytes())
    assert caption(tmp_path / "download") == lines({str(tmp_path / "download"): told["b.png"]})


def test_json_is_a_list_or_lines(
    caption: Callable[..., str], photos: Path, told: dict[str, str], tmp_path: Path
) -> None:
    wanted = [{"file": name, "caption": caption} for name, caption in told.items()]
    assert caption(photos, "--json", tmp_path / "c.json") == ""
    assert json.loads((tmp_path / "c.json").read_text()) == wanted
    assert caption(photos, "--json", tmp_path / "c.jsonl") == ""
    assert [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()] == wanted
    assert json.loads(caption(photos, "--json", "-")) == wanted


def test_generation_is_told_by_flags(caption: Callable[..., str], photos: Path, told: dict[str, str]) -> None:
    said = caption(photos / "b.png", "--prompt", "a photo of")
    assert said.startswith(f"{photos / 'b.png'}\ta photo of ")


def test_pictures_that_cannot_be_read_are_named_and_the_others_captioned(
    model: str, photos: Path, told: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes((photos / "b.png").read_bytes()[:200])
    (tmp_path / "b.png").write_bytes((photos / "b.png").read_bytes())
    (tmp_path / "c\udcff.jpg").write_text("hello")
    with pytest.raises(SystemExit) as ended:
        main(["caption", model, str(tmp_path), *SHORT])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == lines({"b.png": told["b.png"]})
    head, *names = printed.err.splitlines()
    assert head == "2 of 3 pictures have no caption:"
    assert names[0].startswith("a.png: truncated picture")
    assert names[1].startswith("c\\udcff.jpg: undecodable picture")


def test_a_file_name_that_is_no_text_harms_no_output(caption: Callable[..., str], photos: Path, tmp_path: Path) -> None:
    (tmp_path / "c\udcff.png").write_bytes((photos / "b.png").read_bytes())
    assert caption(tmp_path).startswith("c\\udcff.png\t")
    assert json.loads(caption(tmp_path, "--json", "-"))[0]["file"] == "c\udcff.png"
    caption(tmp_path, "--json", tmp_path / "c.jsonl")
    assert json.loads((tmp_path / "c.jsonl").read_text())["file"] == "c\udcff.png"


def test_the_bar_is_on_stderr_and_stdout_has_captions_only(model: str, photos: Path, told: dict[str, str]) -> None:
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "vlp", "caption", model, str(photos), *SHORT]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=terminal, text=True, env={**os.environ, "TERM": "xterm"}
    )
    os.close(terminal)
    shown = b""
    while piece := _read(screen):
        shown += piece
    assert done.stdout == lines(told)
    assert b"captioning" in shown
    assert b"100%" in shown


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end of a terminal is closed
        return b""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("notes.txt", "notes.txt is no picture: name pictures"),
        ("photo.jpg nowhere.jpg", "nowhere.jpg does not exist"),
        ("empty", "empty holds no pictures"),
        ("mixed", "mixed holds both shards and pictures: name mixed/*.tar"),
        ("nowhere.tar", "SHARDS: nowhere.tar does not exist"),
        ("photo.jpg some.tar", "some.tar is shards and photo.jpg is not"),
        ("https://host/photo.jpg", "https://host/photo.jpg is not on this machine"),
        ("photo.jpg --name mine", "--name has no effect on pictures"),
        ("photo.jpg --part 0/2", "--part has no effect on pictures"),
        ("photo.jpg --batch-size 0", "--batch-size 0 must be at least 1"),
        ("photo.jpg --beams 0", "--beams: must be greater than or equal to 1"),
        ("photo.jpg --top-p 0.9 --beams 3", "beams 3 and --top-p 0.9 exclude each other"),
        ("photo.jpg --seed 1", "seed is of drawn captions: set --top-p"),
        ("photo.jpg --json nowhere/c.json", "there is no directory nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "photo.jpg", 0)
    draw(tmp_path / "mixed" / "photo.jpg", 0)
    for name in ("notes.txt", "some.tar", "mixed/00000.tar"):
        (tmp_path / name).write_text("some words")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["caption", "no/such/model", *arguments.split()])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_a_model_that_tells_no_captions_is_refused(
    photos: Path, tmp_path: Path, tiny_model: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    openclip.save_openclip_directory(openclip.build(ModelOptions(config=tiny_model), seed=0), tmp_path)
    for inputs in (photos, photos / "b.png"):
        with pytest.raises(SystemExit, match="2"):
            main(["caption", str(tmp_path), str(inputs)])
        assert "the model tells no captions: take a CoCa" in capsys.readouterr().err


def test_every_option_of_generation_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["caption", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, info in GenerationOptions.model_fields.items():
        assert f" --{name.replace('_', '-')} " in text
        assert info.description
        assert info.description[:30] in text
