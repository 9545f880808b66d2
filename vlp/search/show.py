"""What a search found, at the terminal and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools._console import write_json
from data_tools.verify import printable
from vlp.search.searcher import Hit


def entry(rank: int, hit: Hit) -> dict[str, Any]:
    """One result as JSON; ``offset`` and ``size`` are where the picture's bytes stand in ``path``, if in a shard."""
    row = hit.row
    place = {} if row.size is None else {"offset": row.offset, "size": row.size}
    return {"rank": rank, "score": round(hit.score, 6), "key": row.key, "text": row.text, "path": row.path, **place}


def write_results(to: str, query: str, kind: str, hits: Sequence[Hit]) -> None:
    """The query and what it found, as JSON in a file, or (``-``) on standard output."""
    content = {"query": query, "find": kind, "results": [entry(rank, hit) for rank, hit in enumerate(hits, 1)]}
    if to == "-":
        print(json.dumps(content, indent=1))
    else:
        write_json(Path(to), content)


def show(hits: Sequence[Hit]) -> None:
    """A table on a terminal; on a pipe a line each: score, key, text and path between tabs."""
    lines = [[f"{hit.score:.3f}", hit.row.key, hit.row.text or "", hit.row.path] for hit in hits]
    if not sys.stdout.isatty():
        for line in lines:
            print("\t".join(" ".join(printable(cell).split()) for cell in line))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("score", justify="right")
    for name in ("key", "text", "path"):
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*(Text(printable(cell)) for cell in line))
    Console().print(table)
