"""Words that are taken for each other; for rewrites what is not here is left to the embeddings.

Each line of `synonyms.txt` is a group, for words common in captions. Only words with which the caption stays
true both ways: no "vehicle" for a tractor. A word may stand in several groups.
"""

from __future__ import annotations

from pathlib import Path


def _groups() -> dict[str, frozenset[int]]:
    table = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    found: dict[str, set[int]] = {}
    for number, line in enumerate(table.splitlines()):
        for word in line.split():
            found.setdefault(word, set()).add(number)
    return {word: frozenset(numbers) for word, numbers in found.items()}


GROUPS = _groups()
"""Word -> the groups in which it stands."""
