from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from vlp.data.samples import BadSample, decode_image, decode_text


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width: int = 12, height: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_plain_pictures_keep_their_pixels(kind: str) -> None:
    decoded = decode_image(encoded(picture(), kind))
    assert decoded.mode == "RGB"
    assert np.array_equal(decoded, picture())


def test_transparent_pixels_show_the_ground() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putpixel((0, 0), (10, 20, 30, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    assert np.array(decode_image(encoded(image)))[0].tolist() == [
        [10, 20, 30],
        [255, 255, 255],
        [127, 127, 127],
    ]
    assert np.array(decode_image(encoded(image), ground=(0, 90, 0)))[0, 1].tolist() == [0, 90, 0]


@pytest.mark.parametrize("mode", ["LA", "P", "L", "RGB"])
def test_every_kind_of_transparency_is_honoured(mode: str) -> None:
    """Grey with alpha, palette with a transparent entry, and a colour key in grey and in RGB."""
    if mode == "LA":
        data = encoded(Image.new("LA", (2, 2), (7, 0)))
    elif mode == "P":
        image = Image.new("P", (2, 2), 1)
        image.putpalette([0, 0, 0, 250, 0, 0])
        data = encoded(image, transparency=1)
    else:
        colour, key = (7, 7) if mode == "L" else ((7, 8, 9), (7, 8, 9))
        data = encoded(Image.new(mode, (2, 2), colour), transparency=key)
    assert decode_image(data, ground=(1, 2, 3)).getcolors() == [(4, (1, 2, 3))]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    decoded = np.array(decode_image(encoded(Image.fromarray(grey))))
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(("top", "expected"), [(1.0, 255), (200.0, 200), (65535.0, 255)])
def test_floating_point_pictures(top: float, expected: int) -> None:
    image = Image.fromarray(np.array([[0, top]], dtype=np.float32))
    assert np.array(decode_image(encoded(image, "TIFF")))[0, :, 0].tolist() == [0, expected]


def test_cmyk_jpeg() -> None:
    red = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    r, g, b = np.array(decode_image(red)).mean(axis=(0, 1))
    assert r > 240
    assert g < 15
    assert b < 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), "PNG", exif=exif)
    assert np.array_equal(decode_image(data), ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_lose_the_picture() -> None:
    data = encoded(picture(), "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert np.array_equal(decode_image(data), picture())


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getcolors() == [(16, (255, 0, 0))]


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_bomb_is_refused_before_its_pixels_are_made(side: int) -> None:
    """Twice: where Pillow would only warn, and where it raises."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(100)))
    with pytest.raises(BadSample) as caught:
        decode_image(data)
    assert caught.value.kind == "huge picture"


@pytest.mark.parametrize(("kind", "keep"), [("JPEG", 0.5), ("PNG", 0.5), ("WEBP", 0.5), ("GIF", 0.5)])
def test_truncated_pictures_raise(kind: str, keep: float) -> None:
    data = encoded(picture(64, 64), kind)
    with pytest.raises(BadSample, match="picture"):
        decode_image(data[: int(len(data) * keep)])


@pytest.mark.parametrize("data", [b"", b"no picture", encoded(picture())[:30], b"\xff\xd8\xff\xe0" + bytes(50)])
def test_what_is_no_picture_raises(data: bytes) -> None:
    with pytest.raises(BadSample) as raised:
        decode_image(data)
    assert "0x" not in str(raised.value)  # no address of an object in a sentence for people


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_raise_nothing_but_bad_sample() -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = encoded(picture(24, 24), kind)
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 4):
                data[place] = rng.integers(256)
            with contextlib.suppress(BadSample):
                assert decode_image(bytes(data)).mode == "RGB"


def test_text() -> None:
    assert decode_text("\ufeffein rotes Schloß \n".encode()) == "ein rotes Schloß"
    with pytest.raises(BadSample, match="UTF-8"):
        decode_text("Schloß".encode("latin-1"))
