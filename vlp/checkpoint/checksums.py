"""What the files of a checkpoint must be: ``checksums.json`` has the bytes and the SHA-256 of every other one."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, TypeAdapter
from safetensors import SafetensorError, safe_open

CHECKSUMS_FILE = "checksums.json"
STATE_FILE = "state.json"
_BLOCK = 16 << 20  # a thread waits for the interpreter after each one, up to 5 ms if the training loop holds it


class Checksum(BaseModel, frozen=True):
    """One file."""

    bytes: int
    sha256: str


Table = dict[str, Checksum]  # by path below the checkpoint, with "/"
_TABLE = TypeAdapter(Table)


def write(directory: Path) -> None:
    """Take those of all files that lie in ``directory``."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    table = {
        path.relative_to(directory).as_posix(): Checksum(bytes=path.stat().st_size, sha256=_sha256(path))
        for path in paths
    }
    (directory / CHECKSUMS_FILE).write_bytes(_TABLE.dump_json(table, indent=1))


def parse(data: bytes) -> Table:
    """The content of a ``checksums.json``.

    Raises:
        ValueError: it is none, or names files outside of its checkpoint.
    """
    table = _TABLE.validate_json(data)
    paths = [PurePosixPath(name) for name in table]
    if not paths or any(path.is_absolute() or ".." in path.parts for path in paths):
        raise ValueError("it names no files of a checkpoint")
    return table


def defect(directory: Path) -> str:
    """What is wrong with a checkpoint, in a few words; empty if it is as it was written.

    Of one without ``checksums.json``, as earlier versions wrote them, only that its files are not cut short is known.
    """
    try:
        table = parse((directory / CHECKSUMS_FILE).read_bytes())
    except FileNotFoundError:
        return _defect_of_headers(directory)
    except (OSError, ValueError):
        return f"{CHECKSUMS_FILE} cannot be read"
    for name, expected in table.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != expected.bytes:
            return f"{name} has {size:,} bytes instead of {expected.bytes:,}"
    with ThreadPoolExecutor(4) as pool:
        for name, found in zip(table, pool.map(_sha256_or_none, [directory / name for name in table]), strict=True):
            if found != table[name].sha256:
                return f"{name} " + ("cannot be read" if found is None else "is not what was written")
    return ""


def _sha256(path: Path) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def _sha256_or_none(path: Path) -> str | None:
    try:
        return _sha256(path)
    except OSError:
        return None


def _defect_of_headers(directory: Path) -> str:
    path = directory / STATE_FILE
    try:
        json.loads(path.read_text(encoding="utf-8"))
        for path in directory.glob("*.safetensors"):
            with safe_open(path, "pt"):
                pass
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError, SafetensorError):
        return f"{path.name} cannot be read"
    return ""
