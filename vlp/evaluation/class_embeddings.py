"""Embeddings of classes: of each, the normalised mean of its normalised prompts, as open_clip and CLIP_benchmark do."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.evaluation import class_cache
from vlp.evaluation.embed import Encoder, embed_texts
from vlp.evaluation.team import ALONE, Team


def class_embeddings(
    encoder: Encoder, prompts: Sequence[Sequence[str]], batch_size: int, team: Team = ALONE, cache: bool = False
) -> tuple[Tensor, list[str]]:
    """L2-normalised fp32 embeddings CD of classes, on the encoder's device, on every process of ``team``.

    Args:
        prompts: of each class one or more; equal ones are embedded once.
        cache: look on disk for what the same text tower made of the same token ids, and keep it there. Not done for a
            model that is being trained, or is none of open_clip's.

    Returns:
        also what has to be known of the cache: a file that was damaged or could not be written.
    """
    key = team.once(lambda: class_cache.key_of(encoder, prompts)) if cache else None
    notes: list[str] = []
    if key is not None:
        found, notes = team.once(lambda: class_cache.read(key, len(prompts)))
        if found is not None:
            return found.to(encoder.device), notes
    class_CD = _embedded(encoder, prompts, batch_size, team)
    if key is not None:
        notes = notes + team.once(lambda: class_cache.write(key, class_CD))
    return class_CD, notes


def _embedded(encoder: Encoder, prompts: Sequence[Sequence[str]], batch_size: int, team: Team) -> Tensor:
    text_ND = embed_texts(encoder, list(itertools.chain(*prompts)), batch_size, team)
    means = [of_class_ND.mean(dim=0) for of_class_ND in text_ND.split([len(one) for one in prompts])]
    return F.normalize(torch.stack(means), dim=1)
