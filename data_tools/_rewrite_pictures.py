"""The rule of the gate that looks at the picture: a rewrite may not fit it much worse than the caption does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from data_tools._rewrite_gate import GateOptions, Verdict
from vlp.data.samples import IMAGE_EXTENSIONS, BadSample, decode_image
from vlp.data.shards import Shard
from vlp.encoders import openclip
from vlp.encoders.two_tower import TwoTower

_BATCH = 64

Item = tuple[int, str, Sequence[Verdict]]
"""The row of a sample in its shard, its caption, and the verdicts so far."""


def judge_with_pictures(
    options: GateOptions, shard: Shard, items: Sequence[Item], device: str = "cpu"
) -> list[list[Verdict]]:
    """The verdicts of each item, with ``unlike_picture`` for accepted rewrites that fit the picture too badly.

    A rewrite needs ``options.min_clip_ratio`` of the caption's cosine with the picture, by ``options.clip_model``.
    Verdicts of pictures that cannot be decoded stay as they are: training leaves such samples out, and counts them.

    Raises:
        UserError: the MODEL cannot be loaded.
    """
    assert options.clip_model is not None
    model = _loaded(options.clip_model, device)
    found: list[list[Verdict]] = []
    waiting = iter(items)
    while block := list(islice(waiting, _BATCH)):
        found += _judged(options.min_clip_ratio, model, shard, block)
    return found


@lru_cache(maxsize=1)
def _loaded(reference: str, device: str) -> TwoTower:
    """Kept for the next shards of a process."""
    return openclip.load(reference, device)


def _judged(ratio: float, model: TwoTower, shard: Shard, items: Sequence[Item]) -> Iterator[list[Verdict]]:
    pictures = {number: picture for number, picture in enumerate(_pictures(model, shard, items)) if picture is not None}
    texts = {
        text: None
        for number in pictures
        for text in (items[number][1], *(verdict.text for verdict in items[number][2] if not verdict.reason))
    }
    vector: dict[str, Tensor] = {}
    image_of: dict[int, Tensor] = {}
    if pictures:
        with torch.inference_mode():
            text_ND = F.normalize(model.encode_text(model.tokenizer(list(texts)).to(model.device)).float(), dim=1)
            pixels = torch.stack(list(pictures.values())).to(model.device)
            image_ND = F.normalize(model.encode_image(pixels).float(), dim=1)
        vector = dict(zip(texts, text_ND.cpu(), strict=True))
        image_of = dict(zip(pictures, image_ND.cpu(), strict=True))
    for number, (_, caption, verdicts) in enumerate(items):
        if number not in image_of:
            yield list(verdicts)
            continue
        original = float(image_of[number] @ vector[caption])
        least = original - (1 - ratio) * abs(original)  # below the original's, whatever its sign
        yield [
            verdict if verdict.reason else _compared(verdict, float(image_of[number] @ vector[verdict.text]), least)
            for verdict in verdicts
        ]


def _compared(verdict: Verdict, score: float, least: float) -> Verdict:
    return verdict if score >= least else replace(verdict, reason="unlike_picture", detail=f"{score:.3f} < {least:.3f}")


def _pictures(model: TwoTower, shard: Shard, items: Sequence[Item]) -> Iterator[Tensor | None]:
    for row, _, _ in items:
        try:
            members = shard.read(row, IMAGE_EXTENSIONS)
            picture = next(members[extension] for extension in IMAGE_EXTENSIONS if extension in members)
            yield model.eval_transform(decode_image(picture))
        except BadSample:
            yield None
