"""A column of lists of text, made into Python text only where a row is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa


class TextLists(Sequence[list[str] | None]):
    """A list of text a sample, or None; made into Python text only when a row is asked for."""

    def __init__(self, array: pa.Array) -> None:
        self._array = array
        texts = array.values
        self._rows: Any = memoryview(array.offsets.to_numpy())
        self._has_gaps = bool(texts.null_count or np.diff(self._rows)[array.is_null()].any())
        _, places, content = texts.buffers()
        self._places: Any = memoryview(places or bytes(4)).cast("b").cast("i")[texts.offset :]
        self._content: Any = memoryview(content or b"")

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, row: Any) -> Any:
        return self._array[int(row)].as_py()

    def texts(self, row: int) -> Sequence[str]:
        """Those of one sample, stripped, each decoded when it is asked for; none where it has none.

        A loader draws one of several: by way of Arrow's scalars it would take four times as long.
        """
        if self._has_gaps:
            return [text.strip() for text in self[row] or () if text is not None]
        first, end = self._rows[row], self._rows[row + 1]
        return _Texts(self._content, self._places[first : end + 1])


class _Texts(Sequence[str]):
    """Stretches of ``content`` (UTF-8), between one of ``places`` and the next."""

    __slots__ = ("_content", "_places")

    def __init__(self, content: memoryview, places: memoryview) -> None:
        self._content, self._places = content, places

    def __len__(self) -> int:
        return len(self._places) - 1

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self._places) - 1:
            raise IndexError(number)
        return str(self._content[self._places[number] : self._places[number + 1]], "utf-8").strip()
