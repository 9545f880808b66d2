"""``vlp data stamps`` on a small tree in Tux Paint's layout, and on Debian's where it is installed."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools.stamps import StampsOptions, read_captions, variants, write_stamps
from vlp.types import UserError

try:
    import cairosvg  # noqa: F401
except (ImportError, OSError) as error:  # OSError: the package is here, but not the Cairo library
    WITHOUT_CAIRO = f"SVGs cannot be drawn: {error}"
else:
    WITHOUT_CAIRO = ""
needs_cairo = pytest.mark.skipif(bool(WITHOUT_CAIRO), reason=WITHOUT_CAIRO)

DEBIAN = Path("/usr/share/tuxpaint/stamps")
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}"><rect width="50" height="50" fill="{fill}"/></svg>'


def stamp(tree: Path, name: str, captions: str | None, size: tuple[int, int] = (40, 30), colour: str = "red") -> None:
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        path.write_text(SVG.format(w=size[0], h=size[1], fill=colour))
    else:
        image = Image.new("RGBA", size)
        image.paste(colour, (5, 5, 20, 20))
        image.save(path)
    if captions is not None:
        path.with_suffix(".txt").write_text(captions, encoding="utf-8")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "stamps"
    stamp(tree, "animals/amphibians/frog.png", "A frog.\nfr.utf8=Une grenouille.\npt_BR.utf8=Um sapo.\n")
    stamp(tree, "animals/owl.svg", "An owl! Hoo.\nfr.utf8=Un hibou.\n", (100, 50), "green")
    stamp(tree, "animals/owl.png", None, (60, 60), "blue")
    stamp(tree, "big.png", "A field.\n", (600, 300))
    stamp(tree, "silent.png", None)
    stamp(tree, "snow.png", "Snow.\n", colour="white")
    (tree / "broken.png").write_bytes(b"\x89PNG\r\n")
    (tree / "broken.txt").write_text("Nothing.\n")
    (tree / "frog_desc_fr.ogg").write_bytes(b"sound")
    return tree


def samples(out: Path) -> dict[str, tuple[dict[str, Any], Image.Image, str]]:
    members: dict[str, dict[str, bytes]] = {}
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                key, _, extension = member.name.partition(".")
                members.setdefault(key, {})[extension] = stream.read()
    found = {}
    for sample in members.values():
        record = json.loads(sample["json"])
        found[record["file"]] = (record, Image.open(io.BytesIO(sample["png"])), sample["txt"].decode())
    return found


def test_captions_languages_and_categories_are_kept(tree: Path, tmp_path: Path) -> None:
    write_stamps(StampsOptions(tree, tmp_path / "out", languages=("en", "fr", "pt_BR")))
    found = samples(tmp_path / "out")
    record, image, text = found["animals/amphibians/frog.png"]
    assert text == record["caption"] == "A frog."
    assert record["captions"] == ["A frog.", "frog"]
    assert record["captions_fr"] == ["Une grenouille.", "Une grenouille"]
    assert record["captions_pt_BR"] == ["Um sapo.", "Um sapo"]
    assert record["categories"] == ["animals", "amphibians"]
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGBA", (40, 30), (0, 0, 0, 0))
    assert found["big.png"][0]["captions_fr"] == []


def test_the_png_is_taken_where_there_are_both(tree: Path, tmp_path: Path) -> None:
    write_stamps(StampsOptions(tree, tmp_path / "out"))
    found = samples(tmp_path / "out")
    assert "animals/owl.png" in found
    assert "animals/owl.svg" not in found


@needs_cairo
def test_svg_is_drawn_at_the_longer_side_and_large_png_reduced_to_it(tree: Path, tmp_path: Path) -> None:
    (tree / "animals/owl.png").unlink()
    summary = write_stamps(StampsOptions(tree, tmp_path / "out", image_size=120))
    found = samples(tmp_path / "out")
    owl = found["animals/owl.svg"][1]
    assert owl.size == (120, 60)
    assert owl.getpixel((10, 10)) == (0, 128, 0, 255)
    assert owl.getpixel((119, 30)) == (0, 0, 0, 0)
    assert found["big.png"][1].size == (120, 60)
    assert summary.counts["of them drawn from SVG"] == 1


@needs_cairo
def test_tall_svg_is_drawn_at_its_height(tmp_path: Path) -> None:
    stamp(tmp_path / "tree", "tower.svg", "A tower.", (50, 200))
    write_stamps(StampsOptions(tmp_path / "tree", tmp_path / "out", image_size=80))
    assert samples(tmp_path / "out")["tower.svg"][1].size == (20, 80)


@pytest.mark.parametrize("reason", ["package", "library"])
def test_without_cairosvg_svgs_are_counted_and_the_cure_is_named(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    (tree / "animals/owl.png").unlink()
    if reason == "package":
        monkeypatch.setitem(sys.modules, "cairosvg", None)
    else:
        monkeypatch.delitem(sys.modules, "cairosvg", raising=False)
        (tmp_path / "cairosvg.py").write_text("raise OSError('no library called cairo-2 was found')")
        monkeypatch.syspath_prepend(tmp_path)
    summary = write_stamps(StampsOptions(tree, tmp_path / "out"))
    assert summary.skipped_by_kind()['SVG without cairosvg (pip install "vlp[svg]") and the Cairo library'] == 1
    assert "animals/owl.svg" not in samples(tmp_path / "out")


def test_what_cannot_be_used_is_counted_and_named(tree: Path, tmp_path: Path) -> None:
    summary = write_stamps(StampsOptions(tree, tmp_path / "out"))
    # The owl's PNG shares the caption of its SVG.
    assert {(s.kind, s.where) for s in summary.skipped} == {
        ("no caption", "silent.png"),
        ("nothing to see on white", "snow.png"),
        ("undecodable picture", "broken.png"),
    }
    assert summary.counts["training pictures"] == len(samples(tmp_path / "out")) == 3
    assert "snow.png" in (tmp_path / "out" / "skipped.tsv").read_text()


def test_another_first_language_gives_the_caption(tree: Path, tmp_path: Path) -> None:
    summary = write_stamps(StampsOptions(tree, tmp_path / "out", languages=("fr",)))
    assert {text for _, _, text in samples(tmp_path / "out").values()} == {"Une grenouille.", "Un hibou."}
    assert summary.skipped_by_kind()["no caption in 'fr'"] == 3


def test_flatten_puts_pictures_on_white(tree: Path, tmp_path: Path) -> None:
    write_stamps(StampsOptions(tree, tmp_path / "out", flatten=True))
    image = samples(tmp_path / "out")["animals/amphibians/frog.png"][1]
    assert (image.mode, image.getpixel((0, 0)), image.getpixel((10, 10))) == (
        "RGB",
        (255, 255, 255),
        (255, 0, 0),
    )


def test_the_same_tree_gives_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_stamps(StampsOptions(tree, tmp_path / name))
    assert (tmp_path / "a/00000.tar").read_bytes() == (tmp_path / "b/00000.tar").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"languages": ("fe",)}, "did you mean 'fr'"),
        ({"image_size": 4}, "at least 8"),
        ({"src": Path("/nowhere")}, "holds no .png or .svg"),
    ],
)
def test_mistakes_are_told_in_one_sentence(tree: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        write_stamps(StampsOptions(**{"src": tree, "out": tmp_path / "out"} | change))
    assert "\n" not in str(raised.value)


def test_a_tree_without_one_usable_stamp_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    stamp(tmp_path / "tree", "snow.png", "Snow.", colour="white")
    with pytest.raises(UserError, match="1 nothing to see on white"):
        write_stamps(StampsOptions(tmp_path / "tree", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_full_directory_is_not_mixed_with(tree: Path, tmp_path: Path) -> None:
    write_stamps(StampsOptions(tree, tmp_path / "out"))
    with pytest.raises(UserError, match="not empty"):
        write_stamps(StampsOptions(tree, tmp_path / "out"))


@pytest.mark.parametrize(
    ("caption", "bare"),
    [
        ("A frog.", "frog"),
        ("An inukshuk (or inuksuk), a landmark. It was used.", "inukshuk, a landmark"),
        ("A US 1 cent piece ($.01) called a penny.", "US 1 cent piece called a penny"),
        ("The letter W.", "letter W"),
        ("Say cheese!", "Say cheese"),
        ("A.", "A"),
    ],
)
def test_the_bare_name(caption: str, bare: str) -> None:
    assert variants(caption) == [caption, bare]


def test_a_caption_that_is_bare_is_not_doubled() -> None:
    assert variants("frog") == ["frog"]


def test_articles_are_english_ones_only() -> None:
    assert variants("A casa.", "pt_BR") == ["A casa.", "A casa"]


def test_caption_files_in_their_odd_forms(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("  A  frog. \n\nsr@latin.utf8=Zaba.\nde.utf8=\nnonsense\n", encoding="utf-8")
    assert read_captions(path) == {"en": "A frog.", "sr@latin": "Zaba."}
    path.write_text("")
    assert read_captions(path) == {}


@needs_cairo
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="apt-get install tuxpaint-stamps-default gives the real stamps")
def test_the_real_animals(tmp_path: Path) -> None:
    summary = write_stamps(StampsOptions(DEBIAN / "animals", tmp_path / "out", languages=("en", "ja")))
    assert summary.counts["training pictures"] >= 150
    assert summary.counts["captions in ja"] >= 0.9 * summary.counts["training pictures"]
    for record, image, text in samples(tmp_path / "out").values():
        assert text == record["captions"][0]
        assert max(image.size) <= 224
