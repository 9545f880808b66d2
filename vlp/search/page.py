"""What a search found as a self-contained page, and the page to search with: filled-in templates of this package."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from PIL import Image

from data_tools.verify import printable
from vlp.data.samples import decode_image
from vlp.evaluation.report.templates import save
from vlp.search.pictures import TINY, picture_of, small
from vlp.search.query import Query
from vlp.search.searcher import Hit, Searcher
from vlp.types import UserError


@lru_cache(maxsize=1)
def templates() -> jinja2.Environment:
    """The pages of this package, which may include the look of the report."""
    packages = [jinja2.PackageLoader("vlp.search", "pages"), jinja2.PackageLoader("vlp.evaluation.report", ".")]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(packages),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def source(name: str) -> str:
    """A file of the pages as it is."""
    loader = templates().loader
    assert loader is not None
    return loader.get_source(templates(), name)[0]


def short_name(model: str) -> str:
    """Of a checkpoint its run and step; else the last part of its name."""
    parts = Path(model).parts
    return " / ".join((parts[-3], parts[-1])) if len(parts) > 3 and parts[-2] == "checkpoints" else Path(model).name


def write_page(path: Path, query: Query, hits: Sequence[Hit], searcher: Searcher) -> Path:
    """Write a gallery of ``hits``; a picture that is no longer there is named."""
    kind, model = hits[0].row.kind, short_name(searcher.collection.meta["model"])
    number = len(searcher.collection.of(kind))
    asked = (
        _img(decode_image(Path(query.image).expanduser().read_bytes()), "the picture asked for") if query.image else ""
    )
    page = (
        templates()
        .get_template("gallery.html.j2")
        .render(
            told=printable(query.told()),
            lead=f"{len(hits):,} of {number:,} {kind}, the nearest first, by the cosine of {model}.",
            asked=asked,
            cards=[_card(hit) for hit in hits],
        )
    )
    return save(page, path)


def _card(hit: Hit) -> dict[str, Any]:
    image, missing = Markup(""), ""
    if hit.row.has_picture:
        try:
            image = _img(picture_of(hit.row), hit.row.text or hit.row.key)
        except UserError as error:
            missing = str(error)
    text = hit.row.text or ""
    return {"image": image, "score": f"{hit.score:.3f}", "text": text, "key": hit.row.key, "missing": missing}


def _img(image: Image.Image, alt: str) -> Markup:
    tiny = ' class="tiny"' if max(image.size) <= TINY else ""
    data = base64.b64encode(small(image)).decode("ascii")
    return Markup(f'<img{tiny} alt="{escape(alt)}" src="data:image/webp;base64,{data}">')
