"""Pictures of evaluation sets inside other files than tars: members of a ZIP, cells of a Parquet file."""

from __future__ import annotations

import threading
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data.benchmark_sets import StoredFile
from vlp.types import UserError


@dataclass(frozen=True)
class ZippedFile(StoredFile):
    """The member ``member`` of the ZIP ``path``."""

    member: str = ""

    def read(self) -> bytes:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.member)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(f"{self.name} cannot be read ({error}): copy {self.path} again") from error


def zip_members(path: Path, source: str) -> dict[str, ZippedFile]:
    """The files of the ZIP by their bare names; none where there is no ZIP. ``source`` is where it comes from."""
    if not path.is_file():
        return {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is not a whole ZIP ({error}): copy it again from {source}") from error
    return {Path(name).name: ZippedFile(path, f"{path}: {name}", member=name) for name in names}


@dataclass(frozen=True)
class ParquetPicture(StoredFile):
    """A picture as Hugging Face keeps it, {bytes, path}: row ``row`` of the row group ``group`` in ``column``."""

    group: int = 0
    row: int = 0
    column: str = ""

    def read(self) -> bytes:
        try:
            with _one_reader:
                data = _row_group(self.path, self.group).column(self.column)[self.row]["bytes"].as_py()
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{self.name} cannot be read ({error}): copy {self.path} again") from error
        if data is None:
            raise UserError(f"{self.name} holds no bytes, only a path: take a file with the pictures inside")
        return bytes(data)


_one_reader = threading.Lock()  # pictures are decoded in threads, and each would read the same group


@lru_cache(maxsize=1)
def _row_group(path: Path, group: int) -> pa.Table:
    file = pq.ParquetFile(path)
    pictures = [column.name for column in file.schema_arrow if pa.types.is_struct(column.type)]
    return file.read_row_group(group, columns=pictures)
