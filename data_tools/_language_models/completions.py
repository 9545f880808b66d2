"""What a language model has written for the captions of one shard: a file that only grows, so nothing is paid twice.

The first line says what made the texts (``origin``), each further one is a text. A line is handed to the system before
the text counts, so a process that is killed loses what was on its way and nothing else; it reaches the disk every few
seconds and when the shard is done, which is what a power cut can take.

One process at a time writes a file, by a lock (flock) that ends with its process. Machines that share a folder see
each other's on NFS 4, Lustre mounted with ``flock`` and the like; where a mount keeps its locks to itself (NFS with
``local_lock`` or ``nolock``) it holds on each machine alone: there give every machine a part of the shards of its own.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data_tools._language_models.base import Completion, Request
from vlp.types import UserError

FORMAT = 1
SECONDS_TO_DISK = 5.0

Texts = dict[tuple[str, int], Completion]


def read(path: Path, origin: Mapping[str, Any]) -> tuple[Texts, int]:
    """The texts of a file by (caption, number), and how many of its bytes are whole lines; nothing if there is none.

    Raises:
        UserError: texts of another origin, a file of another kind, a line that cannot be read.
    """
    texts: Texts = {}
    whole = 0
    head = _line({"format": FORMAT, **origin})
    if not path.exists():
        return texts, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                if not line.endswith(b"\n") and head.startswith(line):
                    break  # killed at once
                _check_head(path, line, head)
            elif not line.endswith(b"\n"):
                break
            else:
                try:
                    record = json.loads(line)
                    key = record.pop("caption"), record.pop("number")
                    texts[key] = Completion(**record)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise UserError(
                        f"line {number} of {path} is damaged: remove that line, and its text is asked for again"
                    ) from error
            whole += len(line)
    return texts, whole


def _check_head(path: Path, line: bytes, wanted: bytes) -> None:
    if line == wanted:
        return
    try:
        head = json.loads(line)
        readable = head["format"] == FORMAT and line.endswith(b"\n")
    except (ValueError, TypeError, KeyError):
        readable = False
    if not readable:
        raise UserError(
            f"{path} holds no texts of this version of vlp: move it away, or choose another --name; it is left as it is"
        )
    if head != (ours := json.loads(wanted)):
        raise UserError(
            f"{path} holds texts made otherwise ({_first_difference(head, ours)}): "
            "give the same options, choose another --name, or remove that folder"
        )


class Completions:
    """The texts of one shard, and a place for more.

    Raises:
        UserError: as `read`, and if another process writes this file now; it is left as it is.
    """

    def __init__(self, path: Path, origin: Mapping[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{path}.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UserError(f"another process is writing {path}: wait until it ends, or stop it") from error
        try:
            self._texts, whole = read(path, origin)
            self._file = path.open("ab", buffering=0)
            self._file.truncate(whole)
            self._synced = time.monotonic()
            if not whole:
                self._file.write(_line({"format": FORMAT, **origin}))
        except BaseException:
            self._lock.release()
            raise

    def get(self, caption: str, number: int) -> Completion | None:
        return self._texts.get((caption, number))

    def add(self, request: Request, completion: Completion) -> None:
        self._file.write(_line({"caption": request.caption, "number": request.number, **asdict(completion)}))
        self._texts[request.caption, request.number] = completion
        if time.monotonic() - self._synced > SECONDS_TO_DISK:
            self._to_disk()

    def _to_disk(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        try:
            self._to_disk()
        finally:
            self._file.close()
            self._lock.release()

    def __enter__(self) -> Completions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def _first_difference(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    name = next(name for name in {**wanted, **there} if there.get(name) != wanted.get(name))
    return f"{name}: {json.dumps(there.get(name))} there, {json.dumps(wanted.get(name))} wanted"
