"""The rewrites that LaCLIP's authors released: a CSV of paths and captions, and text files with a rewrite a line.

As README and loader of github.com/LijieFan/LaCLIP have it, the CSV has no header, ``relative_image_path,caption``;
each text file (``cc3m_chatgpt.txt``, ``_bard``, ``_mscoco``, ``_human``) has a rewrite of each caption, in the order of
the CSV. Rows of other files than .png, .jpg and .jpeg do not count; here they do if all rows together fit the text
files. The CSV may go through the captions several times: its row i belongs to line ``i mod lines``. (The original
captions of RedCaps came as a ``.txt``, which is not read here.)
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from data_tools._attach_tables import ROWS, Rows
from vlp.types import UserError

_PICTURES = (".png", ".jpg", ".jpeg")


class LaclipRelease:
    """The rows of the CSV, each with its rewrites, an empty one as ``""``: LaCLIP then draws the caption itself.

    Raises:
        UserError: a text file of another length than the first; a CSV whose rows are no multiple of it; files that
            are not UTF-8.
    """

    def __init__(self, table: Path, texts: Sequence[Path]) -> None:
        self.files, self._table, self._texts = [table, *texts], table, list(texts)
        self.kinds = {"rewrites": "texts"}
        counts = {file: sum(1 for _ in _lines(file)) for file in texts}
        first, self._lines = next(iter(counts.items()))
        if not self._lines:
            raise UserError(f"{first} is empty: give text files with a rewrite a line")
        for file, count in counts.items():
            if count != self._lines:
                raise UserError(
                    f"{first} has {self._lines:,} lines, {file} has {count:,}: each must hold a rewrite of each "
                    "caption of the CSV, in its order"
                )
        self._endings: tuple[str, ...] = ("",)
        everything = sum(1 for _ in self._pictures())
        self._endings = _PICTURES
        rows = sum(1 for _ in self._pictures())
        if (not rows or rows % self._lines) and everything and not everything % self._lines:
            self._endings, rows = ("",), everything
        self.not_pictures = everything - rows
        if not rows or rows % self._lines:
            raise UserError(
                f"{table} has {everything:,} rows ({rows:,} of pictures), {first} has {self._lines:,} lines: "
                "the rows must be as many as the lines, or a multiple of them"
            )

    def rows(self) -> Iterator[Rows]:
        rewritten = self._rewritten()
        pictures = self._pictures()
        while some := list(islice(pictures, ROWS)):
            made = list(islice(rewritten, len(some)))
            texts = pa.array([texts for _, texts in made], pa.list_(pa.string()))
            yield Rows([name for name, _ in some], {"rewrites": texts}, [caption for caption, _ in made])

    def _rewritten(self) -> Iterator[tuple[str, list[str]]]:
        """Each caption with its rewrites, again and again."""
        while True:
            captions = (caption for _, caption in islice(self._pictures(), self._lines))
            for caption, *texts in zip(captions, *map(_lines, self._texts), strict=True):
                yield caption, texts

    def _pictures(self) -> Iterator[tuple[str, str]]:
        csv.field_size_limit(sys.maxsize)
        try:
            with self._table.open(encoding="utf-8-sig") as file:  # line ends as the release's own loader takes them
                reader = csv.reader(file)
                for row in reader:
                    if len(row) < 2:
                        raise UserError(f"{self._table}, line {reader.line_num}, is no 'path,caption': mend it")
                    if row[0].endswith(self._endings):
                        yield row[0], row[1]
        except (OSError, UnicodeError, csv.Error) as error:
            raise UserError(f"{self._table} cannot be read as UTF-8 CSV: {error}") from error


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                yield line.removesuffix("\n")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{file} cannot be read as UTF-8 text: {error}") from error
