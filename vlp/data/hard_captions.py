"""Which captions, nearly right but false of the picture, stand beside a sample."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from vlp.data.captions import CaptionSource, SampleTexts


def draw_hard(
    number: int,
    true: Collection[str],
    members: Mapping[str, bytes],
    sources: Sequence[CaptionSource],
    generator: np.random.Generator,
    layered: Mapping[str, Sequence[str]],
) -> list[str]:
    """Up to ``number`` different texts, drawn by the weights of the sources that the sample has, without replacement.

    Fewer where it has fewer, none where it has none: there is no text to fall back to. What is also among ``true``,
    the captions drawn for the sample, is none.

    Raises:
        BadSample: "broken JSON".
    """
    weights = hard_captions_of(true, members, sources, layered)
    # The largest of u^(1/w) are a weighted draw without replacement (Efraimidis and Spirakis 2006).
    keys = np.log(generator.random(len(weights))) / np.fromiter(weights.values(), float, len(weights))
    drawn = np.argsort(-keys, kind="stable")[:number]
    texts = list(weights)
    return [texts[place] for place in drawn]


def hard_captions_of(
    true: Collection[str],
    members: Mapping[str, bytes],
    sources: Sequence[CaptionSource],
    layered: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """All that `draw_hard` may give, with their weights; no text that differs from one of ``true`` in case only.

    Raises:
        BadSample: "broken JSON".
    """
    texts = SampleTexts(members)
    said = {text.casefold() for text in true}
    weights: dict[str, float] = {}
    for source in sources:
        found = layered[source.source] if source.source in layered else texts.of(source.source)
        stripped = (text.strip() for text in found)
        choices = [text for text in dict.fromkeys(stripped) if text and text.casefold() not in said]
        for text in choices:
            weights[text] = weights.get(text, 0.0) + (source.weight if source.each else source.weight / len(choices))
    return weights
