"""What embeddings are asked to be, and the directory of those that are one kind: ``meta.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

import vlp
from data_tools._console import write_json
from vlp.types import UserError

META = "meta.json"
FORMAT, VERSION = "vlp embeddings", 1


@dataclass(frozen=True)
class Job:
    """What embeddings depend on; small enough to travel to every worker.

    ``model`` and ``digest`` as `vlp.search.model` has them. ``captions`` is where a shard's captions stand (``txt`` or
    ``json.FIELD``), ``with_captions`` whether they are embedded, too; ``column`` is that of the tables of texts.
    ``files`` is ``parquet`` or ``npy``; ``device`` that of the process, or ``auto`` for one of the machine's in turn.
    """

    directory: Path
    model: str
    digest: str
    dimension: int
    preprocessing: Mapping[str, Any]
    dtype: str = "float16"
    files: str = "parquet"
    captions: str = "txt"
    with_captions: bool = False
    column: str | None = None
    batch_size: int = 256
    device: str = "auto"

    def head(self) -> dict[str, Any]:
        """What ``meta.json`` says of all its files."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "vlp": vlp.__version__,
            "model": self.model,
            "digest": self.digest,
            "dimension": self.dimension,
            "dtype": self.dtype,
            "normalised": True,
            "files": self.files,
            "preprocessing": dict(self.preprocessing),
        }

    def claim(self) -> None:
        """Make the directory one of this job, unless it is.

        Raises:
            UserError: it holds embeddings of another model or in another form, or something else.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with lock(self.directory):
            if not (self.directory / META).exists():
                strange = next((p.name for p in sorted(self.directory.iterdir()) if not p.name.startswith(".")), None)
                if strange is not None:
                    raise UserError(f"--output {self.directory} holds other files ({strange}): name an empty directory")
                write_whole(self.directory / META, self.head())
                return
        there = read_meta(self.directory)
        cure = "choose another --output, or remove that directory"
        if there["digest"] != self.digest:
            raise UserError(
                f"{self.directory} holds embeddings of another model ({there['model']}) than {self.model}: {cure}"
            )
        for name, mine in (("dtype", self.dtype), ("files", self.files)):
            if there[name] != mine:
                raise UserError(f"{self.directory} holds {there[name]}, not {mine}: {cure}")


def lock(directory: Path) -> FileLock:
    """For those who change ``meta.json`` at the same time."""
    return FileLock(directory / ".meta.lock")


def write_whole(path: Path, content: Any) -> None:
    """JSON that has its name only when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    write_json(partial, content)
    partial.replace(path)


def read_meta(directory: Path) -> dict[str, Any]:
    """
    Raises:
        UserError: ``directory`` holds no embeddings, or those of another version.
    """
    path = directory / META
    if not path.is_file():
        raise UserError(f"{directory} holds no embeddings ({META} is missing): make them with vlp embed")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if (meta["format"], meta["version"]) != (FORMAT, VERSION):
            raise ValueError("it is of another version")
        if not {"model", "digest", "dimension", "dtype", "files"} <= meta.keys():
            raise ValueError("it lacks what it should say")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be used ({error}): make the embeddings anew with vlp embed") from error
    return dict(meta)
