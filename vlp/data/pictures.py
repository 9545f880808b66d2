"""The bytes of a training picture -> uint8 pixels, by the quickest decoder that gives Pillow's own.

Common JPEG goes through libjpeg-turbo (simplejpeg), which can also decode it to a half, a quarter or an eighth of its
size; all else, and whatever libjpeg-turbo objects to, goes through Pillow (``samples.decode_image``).
"""

from __future__ import annotations

import io
import re

import numpy as np
import simplejpeg
from PIL import Image

from vlp.data.samples import MAX_PIXELS, WHITE, BadSample, decode_image, orientation

# Where a file is cut but has an end marker, Pillow paints the rest grey; libjpeg-turbo says that data are missing.
_MISSING_DATA = re.compile("premature end|found marker 0xd9", re.IGNORECASE)
_COLOURS = ("YCbCr", "Gray", "RGB")  # CMYK is for Pillow, which knows how Adobe inverts it
_TURNS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}


class Picture:
    """One encoded picture: ``width`` and ``height`` of it upright, and its pixels when asked for.

    Of a JPEG only the header is read at first. Transparent pixels are laid over ``ground`` (R, G, B in 0..255).

    Raises:
        BadSample: as ``decode_image``; "truncated picture" also where Pillow would paint the missing part grey.
    """

    def __init__(self, data: bytes, ground: tuple[int, int, int] = WHITE) -> None:
        self._data = data
        self._ground = ground
        self._pixels: dict[int, np.ndarray] = {}
        header = _jpeg_header(data)
        self._for_turbo = header is not None
        if header is None:
            self.height, self.width, _ = self.pixels()[0].shape
            return
        self._raw_width, self._raw_height, self._orientation = header
        swapped = self._orientation >= 5
        self.width, self.height = header[1::-1] if swapped else header[:2]

    def pixels(self, reduction: int = 1) -> tuple[np.ndarray, int]:
        """(height, width, 3) uint8, upright, and the ``reduction`` of its sides: as asked (1, 2, 4 or 8), or 1.

        Reduced sides are rounded up. Only JPEG can be decoded to a reduced size.
        """
        if not self._for_turbo:
            reduction = 1
        if reduction not in self._pixels:
            self._pixels[reduction] = self._decode(reduction)
        return self._pixels[reduction], reduction if self._for_turbo else 1

    def _decode(self, reduction: int) -> np.ndarray:
        if self._for_turbo:
            try:
                size = (-(-self._raw_height // reduction), -(-self._raw_width // reduction))
                return _TURNS[self._orientation](_turbo(self._data, "RGB", size, reduction))
            except ValueError:
                self._for_turbo = False
        return np.array(decode_image(self._data, self._ground))


def _turbo(data: bytes, colours: str, size: tuple[int, int], reduction: int) -> np.ndarray:
    """Decode to ``size`` (height, width). What libjpeg-turbo objects to, though Pillow may not, is a ValueError."""
    try:
        return simplejpeg.decode_jpeg(
            data, colours, min_height=size[0], min_width=size[1], min_factor=reduction, strict=True
        )
    except ValueError as error:
        if _MISSING_DATA.search(str(error)):
            raise BadSample("truncated picture", str(error)) from error
        raise


def _jpeg_header(data: bytes) -> tuple[int, int, int] | None:
    """(width, height, Exif orientation) of a JPEG for libjpeg-turbo; None: a picture for Pillow."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if width * height > MAX_PIXELS:
            raise BadSample("huge picture", f"{width}x{height}")
        if colours not in _COLOURS:
            _turbo(data, "CMYK", (1, 1), 8)  # only to learn whether all of it is there
            return None
        return width, height, orientation(Image.open(io.BytesIO(data))) if _may_be_turned(data) else 1
    except BadSample:
        raise
    except Exception:  # a header that either of the two does not understand: Pillow's verdict counts
        return None


def _may_be_turned(data: bytes) -> bool:
    """Whether an APP1 segment (Exif or XMP, where an orientation may stand) comes before the first scan."""
    place = 2
    while data[place] == 0xFF and data[place + 1] != 0xDA:
        if data[place + 1] == 0xE1:
            return True
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return data[place] != 0xFF  # an unusual layout is for Pillow to read
