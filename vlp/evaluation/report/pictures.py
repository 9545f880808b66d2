"""Pictures and their captions as HTML: small, inlined, sharp where the picture has few pixels."""

from __future__ import annotations

import base64
import io

from markupsafe import Markup, escape
from PIL import Image

SHOWN_PIXELS = 96
LARGEST = 2 * SHOWN_PIXELS  # twice what is shown, for dense screens
TINY = 64


def img(image: Image.Image, alt: str) -> Markup:
    """``<img>`` of an RGB picture, at most `SHOWN_PIXELS` wide and high; tiny ones by a whole factor, unblurred."""
    image = image.convert("RGB")
    side = max(image.size)
    if side <= TINY:
        factor = float(max(1, SHOWN_PIXELS // side))
    else:
        factor = min(1.0, SHOWN_PIXELS / side)
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    width, height = _scaled(image, side, factor)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=side <= SHOWN_PIXELS, quality=100 if side <= SHOWN_PIXELS else 85, method=4)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    tiny = ' class="tiny"' if side <= TINY else ""
    return Markup(
        f'<img{tiny} width="{width}" height="{height}" alt="{escape(alt)}" src="data:image/webp;base64,{data}">'
    )


def _scaled(image: Image.Image, side: int, factor: float) -> tuple[int, int]:
    shown = side * factor / max(image.size)
    return max(1, round(image.width * shown)), max(1, round(image.height * shown))
