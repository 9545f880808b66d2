"""The pictures that embeddings were made of: read from their shard or folder, small ones to look at."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from vlp.data.picture_files import Picture
from vlp.data.samples import BadSample, decode_image
from vlp.data.shards import LOCAL
from vlp.search.collection import Row
from vlp.types import UserError

SIDE = 320  # pixels: a card is half as wide, on dense screens
TINY = 96


def picture_of(row: Row) -> Image.Image:
    """The RGB picture of a row.

    Raises:
        UserError: it is no longer where it was, or the row has none.
    """
    if not row.has_picture:
        raise UserError(f"{row.shard} row {row.key} is a text of no picture")
    try:
        if row.size is not None and row.offset is not None:
            return decode_image(LOCAL.read_at(row.shard, row.offset, row.size))
        return decode_image(Picture(Path(row.path), row.key).read())
    except BadSample as bad:
        raise UserError(f"the picture {row.key} of {row.shard} is no longer there ({bad}): embed it again") from bad


def small(image: Image.Image, side: int = SIDE) -> bytes:
    """WebP of at most ``side`` pixels a side; of tiny pictures every pixel."""
    tiny = max(image.size) <= TINY
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=tiny, quality=100 if tiny else 82, method=2)
    return buffer.getvalue()
