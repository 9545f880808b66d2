import io
import tarfile

import pytest
from PIL import Image

from vlp.data.benchmark_sets import read_classification_set, read_retrieval_set
from vlp.data.write import encode_image, write_classification_set, write_retrieval_set
from vlp.types import UserError


def picture(colour="#ff0000", extension="png", mode="RGB") -> bytes:
    return encode_image(Image.new(mode, (5, 4), colour), extension)


def write_tar(path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def retrieval(tmp_path):
    items = [
        (picture("#ff0000", "png"), "png", ["a red square", "rot"]),
        (picture("#00ff00", "jpg"), "jpg", ["vert; à gauche"]),
        (picture("#0000ff", "webp"), "webp", ["blue", "a", "b"]),
    ]
    write_retrieval_set(tmp_path / "set", items)
    return tmp_path / "set"


@pytest.fixture
def classification(tmp_path):
    items = [(picture(), "png", 1), (picture(), "png", 0)]
    write_classification_set(tmp_path / "set", items, ["cat", "a b c"], ["a photo of a {c}.", "{c}"])
    return tmp_path / "set"


def test_retrieval_round_trip(retrieval):
    found = read_retrieval_set(retrieval)
    assert found.texts == ["a red square", "rot", "vert; à gauche", "blue", "a", "b"]
    assert found.image_of_text == [0, 0, 1, 2, 2, 2]
    colours = [image.load().getpixel((2, 2)) for image in found.images]
    assert colours[0] == (255, 0, 0)
    assert colours[1] == pytest.approx((0, 255, 0), abs=3)
    assert colours[2] == (0, 0, 255)


def test_several_tars_jpeg_and_foreign_members(tmp_path):
    write_tar(
        tmp_path / "test/0.tar",
        [("x/s1.jpeg", picture()), ("x/s1.txt", b"one\n\n  \ntwo\n"), ("x/s1.json", b"{}")],
    )
    write_tar(tmp_path / "test/1.tar", [("README", b"hello"), ("s1.TXT", b"three"), ("s1.png", picture("#0000ff"))])
    (tmp_path / "test/nshards.txt").write_text("2")
    found = read_retrieval_set(tmp_path)
    assert found.texts == ["one", "two", "three"]
    assert found.image_of_text == [0, 0, 1]
    assert found.images[1].load().getpixel((0, 0)) == (0, 0, 255)


def test_transparency_lies_on_white(tmp_path):
    clear = encode_image(Image.new("RGBA", (3, 3), (255, 0, 0, 0)))
    write_retrieval_set(tmp_path / "set", [(clear, "png", ["nothing"])])
    assert read_retrieval_set(tmp_path / "set").images[0].load().getpixel((1, 1)) == (255, 255, 255)


def test_classification_round_trip(classification):
    found = read_classification_set(classification)
    assert found.labels.tolist() == [1, 0]
    assert found.classnames == ["cat", "a b c"]
    assert found.templates == ["a photo of a {c}.", "{c}"]
    assert len(found.images) == 2


def rewrite(directory, members):
    write_tar(directory / "test" / "0.tar", members)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", picture()), ("a.cls", b"0")], r"0\.tar: a has no captions \(\.txt\), only cls, png"),
        ([("a.txt", b"one")], r"0\.tar: a has no picture"),
        ([("a.png", picture()), ("a.txt", b" \n")], r"0\.tar: a\.txt holds no caption"),
        ([("a.png", picture()), ("a.txt", b"\xff\xfe")], r"a\.txt is not UTF-8"),
        ([("a.png", picture()), ("a.txt", b"x"), ("a.png", picture())], r"holds a\.png twice"),
        ([], r"0\.tar holds no samples"),
    ],
)
def test_damaged_retrieval_sets_are_named(retrieval, members, message):
    rewrite(retrieval, members)
    with pytest.raises(UserError, match=message):
        read_retrieval_set(retrieval)


@pytest.mark.parametrize("label", [b"2", b"-1", b"cat", b""])
def test_label_outside_the_class_names(classification, label):
    rewrite(classification, [("a.png", picture()), ("a.cls", label)])
    with pytest.raises(UserError, match=r"a\.cls says .* has 2 names"):
        read_classification_set(classification)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classnames.txt", None, "classnames.txt is missing"),
        ("classnames.txt", "cat\n\ndog\n", "has an empty line"),
        ("zeroshot_classification_templates.txt", "a photo\n", r"'a photo' in .* lacks \{c\}"),
        ("dataset_type.txt", "multilabel", r"no row of classes \(\.npy\)"),
        ("dataset_type.txt", b"\xff\xfe", "dataset_type.txt is not UTF-8"),
        ("test/nshards.txt", None, r"nshards.txt is missing"),
        ("test/nshards.txt", "zero", r"says 'zero'"),
        ("test/nshards.txt", "2", r"1\.tar is missing"),
    ],
)
def test_incomplete_classification_sets_are_named(classification, name, content, message):
    path = classification / name
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_classification_set(classification)


def test_a_tar_cut_anywhere_is_an_error(retrieval):
    path = retrieval / "test" / "0.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        end = max(m.offset_data + -(-m.size // 512) * 512 for m in tar.getmembers())
    for cut in range(0, end + 512, 256):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"0\.tar"):
            read_retrieval_set(retrieval)
