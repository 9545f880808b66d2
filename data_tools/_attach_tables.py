"""Rows that others made: Parquet, JSON lines, CSV and TSV with a header; read as streams."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from vlp.data.layer_files import ARROW, kind_of
from vlp.resolve import nearest
from vlp.types import UserError

ROWS = 16_384  # in memory at once
_COMPRESSED = {".gz", ".bz2", ".zst"}
_NOT_OF_A_KIND = (pa.ArrowException, UnicodeError, OverflowError, TypeError)
_BROKEN = (OSError, UnicodeError, csv.Error, pa.ArrowException)


@dataclass(frozen=True)
class Rows:
    """Some rows: the name of each, which says whose it is; its values; the caption that its texts were made of."""

    names: list[str | None]
    columns: dict[str, pa.Array]
    captions: list[str] | None = None


@dataclass(frozen=True)
class Column:
    """A column of the table, what the layer calls it, and its kind where it is not to be guessed."""

    there: str
    here: str
    kind: str | None = None


class Tables:
    """The rows of several files of one or several formats, as told by their endings.

    Args:
        on: the column with the names.

    What kind a column is the first rows say (in CSV the first megabyte), or `Column.kind`.

    Raises:
        UserError: a file of no known format or that cannot be read, a column that is not there or no layer can hold.
    """

    def __init__(self, files: Sequence[Path], on: str, columns: Sequence[Column]) -> None:
        self.files, self._on, self._columns = list(files), on, list(columns)
        self.not_pictures = 0
        self.kinds = {column.here: column.kind or "" for column in columns}
        first = next(self._batches(self.files[0]), None)
        if first is None:
            raise UserError(f"{self.files[0]} has no rows: leave it out")
        for column in columns:
            if not self.kinds[column.here]:
                found = kind_of(first.schema.field(column.there).type)
                if not found:
                    raise self._unfit(self.files[0], column, "its first rows do not say what kind it is")
                self.kinds[column.here] = found

    def rows(self) -> Iterator[Rows]:
        for file in self.files:
            for batch in self._batches(file):
                columns = {column.here: self._cast(file, batch[column.there], column) for column in self._columns}
                yield Rows(batch[self._on].cast(pa.string()).to_pylist(), columns)

    def _cast(self, file: Path, values: pa.Array, column: Column) -> pa.Array:
        try:
            return values.cast(ARROW[self.kinds[column.here]])
        except pa.ArrowException as error:
            raise self._unfit(file, column, str(error).partition("\n")[0]) from error

    def _unfit(self, file: Path, column: Column, problem: str) -> UserError:
        kind = self.kinds[column.here] or ", ".join(ARROW)
        return UserError(
            f"{file}: column '{column.there}' is not {kind} ({problem}): "
            f"say what it is with --column {column.there}={column.here}:KIND"
        )

    def _batches(self, file: Path) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._of_format(file)
        except _BROKEN as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{file} cannot be read as {_ending(file)}: {reason}; mend it, or say what its columns are"
            ) from error

    def _of_format(self, file: Path) -> Iterator[pa.RecordBatch]:
        kind = _ending(file)
        if kind == ".parquet":
            return self._parquet(file)
        if kind in {".jsonl", ".ndjson"}:
            return self._json_lines(file)
        if kind in {".csv", ".tsv"}:
            return self._separated(file, "\t" if kind == ".tsv" else ",")
        raise UserError(f"{file} is no table that can be read: give .parquet, .jsonl, .csv or .tsv (those also .gz)")

    def _wanted(self, file: Path, known: list[str]) -> list[str]:
        names = list(dict.fromkeys([self._on, *(column.there for column in self._columns)]))
        for name in names:
            if name not in known:
                raise UserError(f"{file} has no column '{name}'{nearest(name, known)}; columns: {', '.join(known)}")
        return names

    def _parquet(self, file: Path) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(file) as table:
            yield from table.iter_batches(ROWS, columns=self._wanted(file, table.schema_arrow.names))

    def _separated(self, file: Path, separator: str) -> Iterator[pa.RecordBatch]:
        with io.TextIOWrapper(pa.input_stream(file), encoding="utf-8-sig", newline="") as text:
            header = next(csv.reader(text, delimiter=separator), [])
        wanted = self._wanted(file, header)
        # Names and what is called text stay as they are written: 000000001 is no number.
        types = {column.there: ARROW[column.kind] for column in self._columns if column.kind} | {self._on: pa.string()}
        with self._open_csv(file, separator, wanted, types) as table:
            odd = {field.name: pa.string() for field in table.schema if kind_of(field.type) is None}  # dates, such
        with self._open_csv(file, separator, wanted, odd | types) as table:
            yield from table

    @staticmethod
    def _open_csv(file: Path, separator: str, wanted: list[str], types: dict[str, Any]) -> Any:
        return pa_csv.open_csv(
            pa.input_stream(file),
            parse_options=pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(include_columns=wanted, column_types=types),
        )

    def _json_lines(self, file: Path) -> Iterator[pa.RecordBatch]:
        types: dict[str, Any] = {
            column.there: ARROW[self.kinds[column.here]] for column in self._columns if column.kind
        }
        with io.TextIOWrapper(pa.input_stream(file), encoding="utf-8-sig") as lines:
            records = _records(file, lines)
            wanted: list[str] = []
            while some := list(islice(records, ROWS)):
                wanted = wanted or self._wanted(file, list({name: 0 for record in some for name in record}))
                columns = {name: [record.get(name) for record in some] for name in wanted}
                names = [str(name) if isinstance(name, str | int) else None for name in columns.pop(self._on)]
                batch = {self._on: pa.array(names, pa.string())}
                for column in self._columns:
                    try:
                        batch[column.there] = pa.array(columns[column.there], types.get(column.there))
                    except _NOT_OF_A_KIND as error:
                        raise self._unfit(file, column, str(error)) from error
                yield pa.RecordBatch.from_pydict(batch)


def _records(file: Path, lines: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number}, is not JSON ({error}): mend it") from error
        if not isinstance(record, dict):
            raise UserError(f'{file}, line {number}, is no JSON object: write one a line, such as {{"key": ...}}')
        yield record


def _ending(file: Path) -> str:
    return (file.with_suffix("") if file.suffix.lower() in _COMPRESSED else file).suffix.lower()
