"""The members of one sample -> a picture and text. What cannot be used raises BadSample with its kind."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "ppm")
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of a decompression bomb; we skip the sample
WHITE = (255, 255, 255)

# Pictures beyond MAX_PIXELS are counted and named, so Pillow need not also print a warning in each worker.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadSample(Exception):
    """A sample that cannot be used; ``kind`` is counted, ``detail`` tells the particulars."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail


def decode_image(data: bytes, ground: tuple[int, int, int] = WHITE) -> Image.Image:
    """Decode the first frame of ``data`` to mode RGB, upright by its EXIF tag.

    Transparent pixels are laid over ``ground`` (R, G, B in 0..255). 16-bit grey is scaled to 8 bits.

    Raises:
        BadSample: "undecodable picture", "truncated picture" or "huge picture".
    """
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise BadSample("huge picture", f"{image.width}x{image.height}")
        image.load()
        return upright_rgb(image, ground)
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample("huge picture", str(error)) from error
    except UnidentifiedImageError as error:
        raise BadSample("undecodable picture", "of no known format") from error
    except Exception as error:  # Pillow's plug-ins raise nearly every built-in error on broken bytes
        kind = "truncated picture" if "truncated" in str(error).lower() else "undecodable picture"
        raise BadSample(kind, str(error) or type(error).__name__) from error


def upright_rgb(image: Image.Image, ground: tuple[int, int, int] = WHITE) -> Image.Image:
    """An opened picture as `decode_image` gives it."""
    return _upright(image, _to_rgb(image, ground))


def decode_text(data: bytes) -> str:
    """UTF-8 text without a byte order mark or surrounding white space.

    Raises:
        BadSample: "text is not UTF-8".
    """
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSample("text is not UTF-8", str(error)) from error


def _to_rgb(image: Image.Image, ground: tuple[int, int, int]) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_grey(image)
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*ground, 255)), above).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Pillow's own conversion of deep grey clips at 255, which turns most pictures white."""
    grey = np.asarray(image).astype(np.float64)
    top = float(grey.max())
    if image.mode.startswith("I;16") or top > 255:
        grey = grey / 257  # 65535 -> 255
    elif image.mode == "F" and top <= 1:
        grey = grey * 255
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")


def orientation(image: Image.Image) -> int:
    """How a picture must be turned by its EXIF tag, 1 (not at all) to 8."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1
    return value if value in _TURNS else 1


def _upright(original: Image.Image, picture: Image.Image) -> Image.Image:
    turn = _TURNS.get(orientation(original))
    return picture if turn is None else picture.transpose(turn)
