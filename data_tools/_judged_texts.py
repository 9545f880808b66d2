"""Layers of texts that were judged: verdicts kept for what they were made for, columns written where they differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from vlp.data.layers import LayerReader, LayerWriter
from vlp.data.shards import LOCAL, Shard

Verdict = TypeVar("Verdict")


def kept_verdicts(
    file: str,
    wanted: str,
    of_fields: Callable[..., Verdict],
    fields_of: Callable[[Verdict], tuple[str, ...]],
    judge: Callable[[], list[list[Verdict]]],
) -> list[list[Verdict]]:
    """The verdicts in ``file`` if they were made for ``wanted``, a digest, else those of ``judge``, which are kept.

    To judge takes longest by far, and a layer may have to be written again for another reason.
    """
    try:
        kept = json.loads(LOCAL.read_all(file))
        if kept["made_for"] == wanted:
            return [[of_fields(*fields) for fields in own] for own in kept["verdicts"]]
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not there yet, or of another version
    found = judge()
    record = {"made_for": wanted, "verdicts": [[fields_of(one) for one in own] for own in found]}
    LOCAL.write(file, json.dumps(record, ensure_ascii=False).encode())
    return found


def write_texts(
    root: str | None,
    name: str,
    made_by: Mapping[str, Any],
    shard: Shard,
    rows: Sequence[int],
    columns: Mapping[str, Sequence[list[str]]],
) -> None:
    """The layer ``name`` of a shard, with lists of texts for ``rows``, unless it lies there and says just this.

    Captions and texts may change under the same keys and options, so its provenance does not tell.
    """
    kinds = dict.fromkeys(columns, "texts")
    writer = LayerWriter(root, name, dict(made_by), kinds)
    if not (writer.has(shard) and _says(LayerReader(root, name, kinds).columns_of(shard), shard, rows, columns)):
        writer.write(shard, [shard.key(row) for row in rows], columns)


def _says(
    there: Mapping[str, Any], shard: Shard, rows: Sequence[int], columns: Mapping[str, Sequence[list[str]]]
) -> bool:
    for column, values in columns.items():
        wanted = dict(zip(rows, values, strict=True))
        if any(there[column][row] != wanted.get(row) for row in range(len(shard))):
            return False
    return True
