"""The quick decoder against the one it stands in for: the same pixels, the same verdicts, no crash."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from vlp.data.pictures import Picture
from vlp.data.samples import BadSample, decode_image


def soft(width: int = 96, height: int = 70, seed: int = 0) -> Image.Image:
    """A picture with all colours, without hard edges, and with a little noise."""
    generator = np.random.default_rng(seed)
    grid = Image.fromarray(generator.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    pixels = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray((pixels + generator.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


JPEGS = {
    "4:2:0": encoded(soft(), quality=90, subsampling=2),
    "4:2:2": encoded(soft(), subsampling=1),
    "4:4:4": encoded(soft(), subsampling=0, quality=97),
    "progressive": encoded(soft(), progressive=True),
    "restart markers": encoded(soft(), restart_marker_blocks=2),
    "grey": encoded(soft().convert("L")),
    "RGB": encoded(soft(), keep_rgb=True),
    "CMYK": encoded(soft().convert("CMYK")),
    "Exif without orientation": encoded(soft(), exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00"),
    "broken Exif": encoded(soft(), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"),
    "a comment": encoded(soft(), comment=b"\xff\xda\xff\xe1"),
    "odd size": encoded(soft(33, 17)),
    "one pixel": encoded(soft(1, 1)),
}
ODD = {
    "palette": encoded(soft().quantize(16), "PNG"),
    "palette with a transparent entry": encoded(soft().quantize(16), "PNG", transparency=3),
    "alpha": encoded(Image.merge("RGBA", [*soft().split(), soft().getchannel(0)]), "PNG"),
    "16-bit grey": encoded(Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)), "PNG"),
    "animation": encoded(soft(), "GIF", save_all=True, append_images=[soft(seed=1)]),
    "WebP": encoded(soft(), "WEBP"),
    "TIFF": encoded(soft(), "TIFF"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", [*JPEGS, *ODD])
def test_pixels_are_pillows(name: str) -> None:
    data = {**JPEGS, **ODD}[name]
    expected = decode_image(data, (0, 90, 200))
    picture = Picture(data, (0, 90, 200))
    assert (picture.width, picture.height) == expected.size
    pixels, reduction = picture.pixels()
    assert reduction == 1
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(kind: str, orientation: int) -> None:
    data = encoded(soft(), kind, exif=exif(orientation))
    expected = decode_image(data)
    picture = Picture(data)
    assert (picture.width, picture.height) == expected.size
    assert np.array_equal(picture.pixels()[0], expected)
    if kind == "JPEG":
        half, reduction = picture.pixels(2)
        assert reduction == 2
        assert half.shape == (-(-picture.height // 2), -(-picture.width // 2), 3)
        assert np.abs(half - np.asarray(expected.reduce(2)).astype(float)).mean() < 4


def test_an_orientation_is_found_after_other_segments_and_in_xmp() -> None:
    plain, turned = encoded(soft()), encoded(soft(), exif=exif(6))
    profile = b"\xff\xe2" + struct.pack(">H", 40_002) + b"\xff\xda" * 20_000
    data = turned[:2] + profile + turned[2:]
    assert (Picture(data).width, Picture(data).height) == (70, 96)
    content = b'http://ns.adobe.com/xap/1.0/\x00<x tiff:Orientation="8"/>'
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + plain[2:]
    assert np.array_equal(Picture(data).pixels()[0], decode_image(data))


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("name", ["4:2:0", "4:4:4", "progressive", "grey", "odd size", "one pixel"])
def test_reduced_pictures_are_small_pictures_of_the_same(name: str, reduction: int) -> None:
    whole = decode_image(JPEGS[name])
    pixels, reached = Picture(JPEGS[name]).pixels(reduction)
    assert reached == reduction
    assert pixels.shape == (-(-whole.height // reduction), -(-whole.width // reduction), 3)
    reference = np.asarray(whole.reduce(reduction)).astype(float)
    assert np.abs(pixels - reference).mean() < 10


@pytest.mark.parametrize("name", ["CMYK", "palette", "WebP"])
def test_what_cannot_be_reduced_comes_whole(name: str) -> None:
    data = {**JPEGS, **ODD}[name]
    pixels, reduction = Picture(data).pixels(4)
    assert reduction == 1
    assert np.array_equal(pixels, decode_image(data))


def verdict(data: bytes, reduction: int = 1) -> np.ndarray | str:
    try:
        return Picture(data).pixels(reduction)[0]
    except BadSample as bad:
        return bad.kind


def pillows_verdict(data: bytes) -> np.ndarray | str:
    try:
        return np.asarray(decode_image(data))
    except BadSample as bad:
        return bad.kind


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", ["4:2:0", "4:4:4", "progressive", "restart markers", "grey", "CMYK", "broken Exif"])
def test_a_truncated_jpeg_is_never_a_picture(name: str) -> None:
    """Of the kind that Pillow says, wherever it is cut."""
    data = JPEGS[name]
    for end in range(len(data) - 2, 0, -max(1, len(data) // 90)):
        assert verdict(data[:end]) == pillows_verdict(data[:end]), end
        assert isinstance(verdict(data[:end], 2), str)


@pytest.mark.parametrize("name", ["4:2:0", "4:4:4", "restart markers", "grey", "CMYK"])
def test_nor_is_one_that_was_closed_after_the_cut(name: str) -> None:
    """Here Pillow paints the rest grey."""
    data = JPEGS[name]
    start = data.index(b"\xff\xda") + 20
    for end in range(start, len(data) - 40, max(1, (len(data) - start) // 60)):
        closed = data[:end] + b"\xff\xd9"
        assert verdict(closed) == "truncated picture"
        assert verdict(closed, 2) == "truncated picture"
    assert isinstance(pillows_verdict(data[: len(data) // 2] + b"\xff\xd9"), np.ndarray)


def test_what_only_pillow_can_read_is_read_by_pillow() -> None:
    """Stray bytes before the end marker: libjpeg-turbo objects, Pillow shows what there is."""
    stray = JPEGS["4:2:0"][:-2] + bytes(9) + b"\xff\xd9"
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(stray)
    pixels, reduction = Picture(stray).pixels(2)
    assert reduction == 1
    assert np.array_equal(pixels, decode_image(stray))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["4:2:0", "progressive", "restart markers", "CMYK", "palette", "WebP", "animation"])
def test_damaged_bytes_end_in_a_picture_or_a_bad_sample(name: str) -> None:
    """And where the quick decoder has no objection, Pillow has none and gives the same pixels."""
    whole = {**JPEGS, **ODD}[name]
    generator = np.random.default_rng(0)
    for trial in range(300):
        data = bytearray(whole)
        for place in generator.integers(0, len(data), generator.integers(1, 6)):
            data[place] = generator.integers(256)
        ours, pillows = verdict(bytes(data)), pillows_verdict(bytes(data))
        if isinstance(ours, np.ndarray):
            assert np.array_equal(ours, pillows), trial
        else:
            assert ours in ("truncated picture", "undecodable picture", "huge picture")
            assert ours == "truncated picture" or ours == str(pillows), trial
        assert isinstance(verdict(bytes(data), 4), type(ours))


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(JPEGS["4:2:0"])
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def png_of_size(side: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100)))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [jpeg_of_size(10_000, 10_000), jpeg_of_size(65_000, 65_000), png_of_size(10_000), png_of_size(60_000)],
    ids=["jpeg", "larger jpeg", "png", "larger png"],
)
def test_a_bomb_is_refused_before_its_pixels_are_made(data: bytes) -> None:
    with pytest.raises(BadSample, match="huge picture"):
        Picture(data)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1\x00\x00" * 9, b"<html>"]
)
def test_what_is_no_picture_is_undecodable(data: bytes) -> None:
    assert verdict(data) == pillows_verdict(data) == "undecodable picture"


def test_pixels_are_decoded_once() -> None:
    picture = Picture(JPEGS["4:2:0"])
    assert picture.pixels()[0] is picture.pixels()[0]
    assert picture.pixels(2)[0] is picture.pixels(2)[0]
