"""Which text of a sample is used: a weighted draw among its sources."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, Field, model_validator

from vlp.data.layer_files import layer_columns, layers_root, list_layers, no_layer, pick_column
from vlp.data.layers import KEPT_SHARDS, LayerReader
from vlp.data.samples import BadSample, decode_text
from vlp.data.shards import LOCAL, Shard
from vlp.data.store import Store
from vlp.data.text_lists import TextLists
from vlp.types import UserError

# Scripts whose words are not set apart by spaces: Thai to Tibetan, Myanmar, Khmer, kana, Chinese characters.
_UNSPACED = re.compile(r"[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")  # in JSON; of characters beyond 16 bits both halves
_DRAWS_FOR_ANOTHER = 8
_NO_LAYERS: Mapping[str, list[str]] = MappingProxyType({})


class CaptionSource(BaseModel, frozen=True, extra="forbid"):
    """Where a text of a sample stands, and how often it is drawn."""

    source: str = Field(
        pattern=r"^(txt|json\..+|layer\.[^./]+(\..+)?)$",
        description="`txt`, `json.FIELD`, or `layer.NAME` with `.COLUMN` where it has several: a text, or a list of "
        "which one is drawn; a text of a layer with fewer than two words gives way to the `.txt`, as in LaCLIP",
    )
    weight: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="how often, relative to the sample's other sources; 0: as if this source were not listed",
    )
    each: bool = Field(
        default=False,
        description="the weight is that of each text, not of the source: `{source: txt}` with `{source: layer.NAME, "
        "each: true}` draws the caption and each of its rewrites alike, however many there are (LaCLIP)",
    )

    @model_validator(mode="after")
    def _each_has_an_effect(self) -> CaptionSource:
        if self.each and self.source == "txt":
            raise ValueError("each has no effect on txt, which is one text: remove it")
        return self

    @property
    def member(self) -> str:
        """The extension of the member that holds it, or that a layer's text gives way to."""
        member = self.source.partition(".")[0]
        return "txt" if member == "layer" else member

    @property
    def layer(self) -> tuple[str, str | None] | None:
        """(layer, column, or None for its only one of text); None for a source inside the sample."""
        kind, _, rest = self.source.partition(".")
        name, _, column = rest.partition(".")
        return (name, column or None) if kind == "layer" else None


def _with_a_weight(sources: list[CaptionSource]) -> list[CaptionSource]:
    if not any(source.weight for source in sources):
        raise ValueError("no source has a weight above 0: give one to those to draw from")
    return [source for source in sources if source.weight]


# What a recipe lists; a weight of 0 leaves a source out, so that a run without it is the same run.
CaptionSources = Annotated[list[CaptionSource], AfterValidator(_with_a_weight)]


def _none_or_with_a_weight(sources: list[CaptionSource]) -> list[CaptionSource]:
    if any(source.source == "txt" for source in sources):
        raise ValueError("txt is the true caption: name a layer, such as layer.negatives.negatives, or json.FIELD")
    return _with_a_weight(sources) if sources else sources


HardCaptionSources = Annotated[list[CaptionSource], AfterValidator(_none_or_with_a_weight)]


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
            data = self._members.get("json", b"{}")
            try:
                record = json.loads(data)
                if _HALF_PAIR.search(data):
                    json.dumps(record, ensure_ascii=False).encode()  # a half alone is no text
            except (ValueError, RecursionError) as error:
                raise BadSample("broken JSON", str(error)) from error
            self._record = record if isinstance(record, dict) else {}
        return self._record


def draw(
    members: Mapping[str, bytes],
    sources: Sequence[CaptionSource],
    generator: np.random.Generator,
    layered: Mapping[str, Sequence[str]] = _NO_LAYERS,
) -> str:
    """One caption of a sample: weighted among the sources it has; an empty draw falls back to its ``.txt``.

    So does a text of a layer with fewer than two words (LaCLIP), where there is a ``.txt`` to fall back to and the
    script has spaces between words. ``layered``: source -> the texts of the sample, as `CaptionLayers.of` gives them.

    Raises:
        BadSample: "empty caption", "text is not UTF-8" or "broken JSON".
    """
    texts = SampleTexts(members)
    present = _choices(texts, sources, layered)
    which, among = generator.random(2)  # always two, so that later draws do not depend on the sources
    if present:
        # numpy takes several times as long for so few
        ends = list(accumulate(s.weight * len(choices) if s.each else s.weight for s, choices in present))
        source, choices = present[bisect_right(ends, which * ends[-1])]
        caption = _drawn(source, choices[int(among * len(choices))], texts)
    else:
        caption = _txt(texts)
    if not caption:
        raise BadSample("empty caption")
    return caption


def captions_of(
    members: Mapping[str, bytes], sources: Sequence[CaptionSource], layered: Mapping[str, Sequence[str]] = _NO_LAYERS
) -> set[str]:
    """All that `draw` may give."""
    texts = SampleTexts(members)
    found = {_drawn(s, choice, texts) for s, choices in _choices(texts, sources, layered) for choice in choices}
    return (found or {_txt(texts)}) - {""}


def _choices(
    texts: SampleTexts, sources: Sequence[CaptionSource], layered: Mapping[str, Sequence[str]]
) -> list[tuple[CaptionSource, Sequence[str]]]:
    """The sources that a sample has, with their texts."""
    found = ((s, layered[s.source] if s.source in layered else texts.of(s.source)) for s in sources)
    return [(s, choices) for s, choices in found if choices]


def _drawn(source: CaptionSource, text: str, texts: SampleTexts) -> str:
    """What is used where ``text`` was drawn."""
    doubtful = len(text.split()) < 2 and source.layer is not None and not _UNSPACED.search(text)
    return _txt(texts) or text if not text or doubtful else text


def _txt(texts: SampleTexts) -> str:
    return next(iter(texts.of("txt")), "")


def draw_more(
    first: str,
    number: int,
    members: Mapping[str, bytes],
    sources: Sequence[CaptionSource],
    generator: np.random.Generator,
    layered: Mapping[str, Sequence[str]] = _NO_LAYERS,
) -> list[str]:
    """``first`` and further draws, ``number`` captions in all: different ones as far as some draws find them."""
    captions = [first]
    for _ in range(number - 1):
        for _ in range(_DRAWS_FOR_ANOTHER):
            caption = draw(members, sources, generator, layered)
            if caption not in captions:
                break
        captions.append(caption)
    return captions


class CaptionLayers:
    """The texts that caption sources draw from layers; empty where no source does.

    Raises:
        UserError: a layer that does not exist (the ones there are are named), or a column that does not or is no text.
    """

    def __init__(
        self,
        sources: Sequence[CaptionSource],
        shard_paths: Sequence[str],
        root: str | Path | None = None,
        store: Store = LOCAL,
        kept_shards: int = KEPT_SHARDS,
        key: str = "data.captions",
    ) -> None:
        self._key = key
        self._columns: dict[str, tuple[str, str]] = {}  # source -> (layer, column)
        kinds: dict[str, dict[str, str]] = {}
        for source in sources:
            if source.layer is None:
                continue
            name, column = source.layer
            where = f"{key}: source '{source.source}'"
            columns = layer_columns(name, shard_paths, root, store)
            if columns is None:
                known = list_layers(shard_paths, root, store)
                raise no_layer(where, name, known, layers_root(shard_paths[0], root))
            picked = pick_column(where, name, columns, column, ("text", "texts"))
            self._columns[source.source] = name, picked
            kinds.setdefault(name, {})[picked] = columns[picked]
        self._readers = {name: LayerReader(root, name, columns, store, kept_shards) for name, columns in kinds.items()}

    def of(self, shard: Shard, row: int) -> dict[str, Sequence[str]]:
        """Source -> the texts of one sample; none where the layer does not cover it.

        Raises:
            UserError: a layer file that is of other samples, or cannot be read.
        """
        found: dict[str, Sequence[str]] = {}
        for source, (layer, column) in self._columns.items():
            columns, defect = self._readers[layer].values_of(shard)
            if defect:
                raise UserError(
                    f"{self._key}: {defect.kind} {defect.where}: write it again, or remove it to go on without it"
                )
            values = columns[column]
            if isinstance(values, TextLists):
                found[source] = values.texts(row)
            else:
                found[source] = [values[row].strip()] if values[row] is not None else []
        return found

    def check(self, shards: Iterable[Shard]) -> None:
        """Refuse a source without a text for any of ``shards``; reads no further than needed.

        Raises:
            UserError: it names the source.
        """
        missing = set(self._columns)
        for shard in shards if missing else ():
            for source in sorted(missing):
                layer, column = self._columns[source]
                values = self._readers[layer].columns_of(shard)[column]
                if any(value is not None and len(value) for value in values):
                    missing.discard(source)
            if not missing:
                return
        if missing:
            raise UserError(
                f"{self._key}: '{min(missing)}' has no text for any shard of data.train, so it would have no effect: "
                "look at it with vlp data layers, or remove this source"
            )


def _present(texts: SampleTexts, source: str) -> bool:
    try:
        return bool(texts.of(source))
    except BadSample:  # there, though it cannot be used
        return True


def check_sources(
    samples: Iterable[Mapping[str, bytes]], sources: Sequence[CaptionSource], key: str = "data.captions"
) -> None:
    """Refuse a source that none of ``samples`` has; reads no further than needed. Layers: see `CaptionLayers`.

    Raises:
        UserError: it names the source and the JSON fields there are.
    """
    missing = {s.source for s in sources if s.layer is None}
    if not missing:
        return
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
            f"{key}: no sample looked at has '{min(missing)}', so it would have no effect: "
            f"correct or remove this source{known}"
        )
