"""What the data tools say while they work and when they are done."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vlp.types import Skipped, UserError

Item = TypeVar("Item")


@dataclass
class Summary:
    """What a tool wrote: named counts in the order they are printed, and everything that was left out."""

    directory: Path
    counts: dict[str, int] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, kind: str, where: str) -> None:
        self.skipped.append(Skipped(kind, where))

    def skipped_by_kind(self) -> Mapping[str, int]:
        return Counter(s.kind for s in self.skipped)

    def write_skipped(self) -> None:
        """``skipped.tsv`` (kind, name) beside the data, if anything was left out; ``show`` names few."""
        if self.skipped:
            lines = "".join(f"{s.kind}\t{s.where}\n" for s in self.skipped)
            (self.directory / "skipped.tsv").write_text(lines, encoding="utf-8")

    def show(self, shown_names: int = 5) -> None:
        """Print the table of counts, then each kind of left-out item with its first names."""
        width = max(len(name) for name in self.counts)
        print(f"wrote {self.directory}")
        for name, count in self.counts.items():
            print(f"  {name:<{width}}  {count:>7,}")
        for kind, count in self.skipped_by_kind().items():
            names = [s.where for s in self.skipped if s.kind == kind]
            more = f" and {count - shown_names:,} more in skipped.tsv" if count > shown_names else ""
            print(f"  skipped {count:,}, {kind}: {', '.join(names[:shown_names])}{more}")


def by_kind(skipped: Sequence[Skipped]) -> list[tuple[str, int, list[str]]]:
    """(kind, samples, the first names), the most frequent first."""
    kinds: dict[str, list[Skipped]] = {}
    for one in skipped:
        kinds.setdefault(one.kind, []).append(one)
    found = [(kind, sum(one.samples for one in own), [one.where for one in own[:3]]) for kind, own in kinds.items()]
    return sorted(found, key=lambda one: (-one[1], one[0]))


def write_json(path: Path, content: Any) -> None:
    """What ``--json`` writes: UTF-8 also where names hold bytes that are not, which then stand as JSON's escapes."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """``items`` with a progress bar on a terminal, and nothing at all on a pipe."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description, total=total, console=Console(stderr=True))


def check_caption_source(source: str) -> None:
    """
    Raises:
        UserError: the ``--caption`` of a tool that reads one caption a sample names no place inside the tars.
    """
    if not re.fullmatch(r"txt|json\..+", source):
        raise UserError(f"--caption {source} is no source of captions here: write txt or json.FIELD")
