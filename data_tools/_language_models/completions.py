"""What a language model has written for the captions of one shard: a file that only grows, so nothing is paid twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from data_tools._language_models.base import Completion, Request
from vlp.types import UserError

FORMAT = 1


class Completions:
    """Texts by (caption, number), each written down before it counts.

    A line of JSON a text, after a first line that says what made them (``origin``). A line that a killed process left
    half written is dropped.

    Raises:
        UserError: the file holds texts of another origin; it is left as it is.
    """

    def __init__(self, path: Path, origin: Mapping[str, Any]) -> None:
        self.path = path
        self._texts: dict[tuple[str, int], Completion] = {}
        head = {"format": FORMAT, **json.loads(json.dumps(origin))}
        whole = self._read(head) if path.exists() else 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._file.truncate(whole)
        if not whole:
            self._append(head)

    def _read(self, head: Mapping[str, Any]) -> int:
        """Take over what the file holds; the number of bytes of its whole lines."""
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                record = json.loads(line)
                if number == 0 and record != head:
                    raise UserError(
                        f"{self.path} holds texts made otherwise ({_first_difference(record, head)}): "
                        "give the same options, choose another --name, or remove that folder"
                    )
                if number:
                    key = record.pop("caption"), record.pop("number")
                    self._texts[key] = Completion(**record)
                whole += len(line)
        return whole

    def get(self, caption: str, number: int) -> Completion | None:
        return self._texts.get((caption, number))

    def add(self, request: Request, completion: Completion) -> None:
        self._append({"caption": request.caption, "number": request.number, **asdict(completion)})
        self._texts[request.caption, request.number] = completion

    def _append(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()

    def __enter__(self) -> Completions:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _first_difference(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    name = next(name for name in {**wanted, **there} if there.get(name) != wanted.get(name))
    return f"{name}: {json.dumps(there.get(name))} there, {json.dumps(wanted.get(name))} wanted"
