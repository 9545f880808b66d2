"""How far the writing of texts is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from data_tools._language_models.base import Completion, Request
from data_tools._language_models.shards import Progress, Told

SECONDS_BETWEEN_LINES = 30.0


class Rate:
    """Texts and tokens a second from the first text on, so without the time in which a model is loaded."""

    def __init__(self) -> None:
        self._start: tuple[float, int, int] | None = None
        self.texts = self.tokens = 0.0

    def update(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._start is None:
            self._start = now, progress.written, progress.tokens
        start, written, tokens = self._start
        if now > start:
            self.texts = (progress.written - written) / (now - start)
            self.tokens = (progress.tokens - tokens) / (now - start)

    def says(self, left: int) -> str:
        if not self.texts:
            return ""
        time_left = timedelta(seconds=round(left / self.texts))
        return f"{self.texts:,.1f} texts/s, {self.tokens:,.0f} tokens/s, {time_left} left"


@contextmanager
def shown(total: int, description: str) -> Iterator[Told]:
    """What `write_texts` tells of ``total`` missing texts, on stderr."""
    rate = Rate()
    if not sys.stderr.isatty():
        last = time.monotonic()

        def print_line(progress: Progress, request: Request, completion: Completion) -> None:
            nonlocal last
            rate.update(progress)
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                says = rate.says(total - progress.written)
                print(f"{description}: {progress.written:,} of {total:,} texts, {says}", file=sys.stderr, flush=True)

        yield print_line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[says]}")
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, says="")

        def move(progress: Progress, request: Request, completion: Completion) -> None:
            rate.update(progress)
            bar.update(task, completed=progress.written, says=rate.says(total - progress.written))

        yield move
