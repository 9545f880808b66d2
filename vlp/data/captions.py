"""Which text of a sample is used: a weighted draw among its sources."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import numpy as np
from pydantic import BaseModel, Field

from vlp.data.samples import BadSample, decode_text
from vlp.types import UserError


class CaptionSource(BaseModel, frozen=True, extra="forbid"):
    """Where a text of a sample stands, and how often it is drawn."""

    source: str = Field(
        pattern=r"^(txt|json\..+)$", description="`txt`, or `json.FIELD`: a string, or a list of which one is drawn"
    )
    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="how often, relative to the sample's other sources"
    )

    @property
    def member(self) -> str:
        """The extension of the member that holds it."""
        return self.source.partition(".")[0]


class SampleTexts:
    """The texts of one sample, decoded when asked for."""

    def __init__(self, members: Mapping[str, bytes]) -> None:
        self._members = members
        self._record: dict | None = None

    def of(self, source: str) -> list[str]:
        """What can be drawn from ``source``; empty if the sample does not have it."""
        member, _, field = source.partition(".")
        if member not in self._members:
            return []
        if not field:
            return [decode_text(self._members[member])]
        value = self.record().get(field)
        values = value if isinstance(value, list) else [value]
        return [text.strip() for text in values if isinstance(text, str)]

    def record(self) -> dict:
        """The JSON object of the sample."""
        if self._record is None:
            try:
                record = json.loads(self._members.get("json", b"{}"))
            except ValueError as error:
                raise BadSample("broken JSON", str(error)) from error
            self._record = record if isinstance(record, dict) else {}
        return self._record


def draw(members: Mapping[str, bytes], sources: Sequence[CaptionSource], generator: np.random.Generator) -> str:
    """One caption of a sample: weighted among the sources it has; an empty draw falls back to its ``.txt``.

    Raises:
        BadSample: "empty caption", "text is not UTF-8" or "broken JSON".
    """
    texts = SampleTexts(members)
    present = [(s.weight, found) for s in sources if (found := texts.of(s.source))]
    which, among = generator.random(2)  # always two, so that later draws do not depend on the sources
    caption = ""
    if present:
        ends = np.cumsum([weight for weight, _ in present])
        choices = present[int(np.searchsorted(ends, which * ends[-1], side="right"))][1]
        caption = choices[int(among * len(choices))]
    if not caption:
        caption = next(iter(texts.of("txt")), "")
    if not caption:
        raise BadSample("empty caption")
    return caption


def _present(texts: SampleTexts, source: str) -> bool:
    try:
        return bool(texts.of(source))
    except BadSample:  # there, though it cannot be used
        return True


def check_sources(samples: Iterable[Mapping[str, bytes]], sources: Sequence[CaptionSource]) -> None:
    """Refuse a source that none of ``samples`` has; reads no further than needed.

    Raises:
        UserError: it names the source and the JSON fields there are.
    """
    missing = {s.source for s in sources}
    fields: set[str] = set()
    for members in samples:
        texts = SampleTexts(members)
        with suppress(BadSample):  # counted when it is drawn
            fields |= {name for name, value in texts.record().items() if isinstance(value, str | list)}
        missing = {source for source in missing if not _present(texts, source)}
        if not missing:
            return
    if missing:
        known = f"; JSON fields there: {', '.join(sorted(fields))}" if fields else ""
        raise UserError(
            f"data.captions: no sample looked at has '{min(missing)}', so it would have no effect: "
            f"correct or remove this source{known}"
        )
