"""Walking the headers of a tar without reading or keeping its contents."""

from __future__ import annotations

import tarfile
from typing import BinaryIO

_BLOCK = 512
_PIECE = 1 << 20
_LONGEST_PADDING = 1 << 20  # tar pads to 10 KB, or to a megabyte for tapes
_BROKEN = (ValueError, OverflowError, RecursionError)  # what tarfile raises on numbers and records without sense


def members(stream: BinaryIO, seekable: bool) -> tuple[list[tuple[str, int, int]], int, bool]:
    """The regular members of a tar as (name, offset, size), its length, and whether its end mark was reached.

    A member may reach beyond the length: then the tar was cut inside it. An end mark with more than zeros behind it,
    or with far more zeros than any padding, is none: there were members once.

    Args:
        seekable: False for a stream that can only be read on; contents are then read and dropped.

    Raises:
        tarfile.TarError: this is no tar.
    """
    reader = _Forward(stream, seekable)
    found: list[tuple[str, int, int]] = []
    first = reader.peek()
    if len(first) == _BLOCK and not any(first):  # nothing but the end mark: Python 3.10 trips over it
        return found, _BLOCK, reader.only_padding_left()
    try:
        tar = tarfile.TarFile(fileobj=reader)  # type: ignore[arg-type]
    except _BROKEN as error:
        raise tarfile.ReadError(f"broken first header ({error})") from error
    last, whole = -1, True
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, *_BROKEN):
            whole = False
            break
        if member is None:
            # tarfile takes a broken header for the end.
            whole = len(reader.last) == _BLOCK and not any(reader.last) and reader.only_padding_left()
            break
        if member.offset <= last or member.size < 0:  # a broken size pointed backwards
            whole = False
            break
        last = member.offset
        tar.members.clear()  # type: ignore[attr-defined]  # or it keeps a kilobyte for each
        if member.isreg() and not member.issparse():
            found.append((member.name, member.offset_data, member.size))
    return found, reader.length(), whole


class _Forward:
    """What tarfile needs of a file, which never goes back; ``last`` is what it read last."""

    def __init__(self, stream: BinaryIO, seekable: bool) -> None:
        self._stream = stream
        self._seekable = seekable
        self._position = 0
        self._peeked = b""
        self.last = b""

    def peek(self) -> bytes:
        self._peeked = _read(self._stream, _BLOCK)
        return self._peeked

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        data, self._peeked = self._peeked[:size], self._peeked[size:]
        if len(data) < size:
            data += _read(self._stream, size - len(data))
        self._position += len(data)
        self.last = data
        return data

    def seek(self, position: int) -> None:
        if self._seekable:
            self._stream.seek(position)
            self._peeked = b""
            self._position = position
            return
        while self._position < position and self.read(min(_PIECE, position - self._position)):
            pass

    def only_padding_left(self) -> bool:
        end = self._position
        while piece := self.read(_PIECE):
            if piece.count(0) < len(piece) or self._position - end > _LONGEST_PADDING:
                return False
        return True

    def length(self) -> int:
        """Where the stream ends."""
        if self._seekable:
            return self._stream.seek(0, 2)
        while self.read(_PIECE):
            pass
        return self._position


def _read(stream: BinaryIO, size: int) -> bytes:
    """``size`` bytes unless the stream ends: a raw one may give fewer at a time, and a broken size is no memory."""
    parts = []
    while size and (part := stream.read(min(size, _PIECE))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
