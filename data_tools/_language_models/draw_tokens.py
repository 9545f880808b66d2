"""The next token of each row, drawn so that it does not matter which rows stand beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from data_tools._language_models.base import Sampling
from vlp import draws

FIRST_CANDIDATES = 64


def draw_tokens(logits_BV: Tensor, sampling: Sampling, seeds_B: Tensor, step: int) -> Tensor:
    """Ids (B,) drawn exactly from the softmax of ``logits_BV / temperature`` over its nucleus, or the likeliest ones.

    The nucleus are the likeliest tokens that hold ``top_p`` of the probability together, with all that are as likely
    as the last of them. The draw adds Gumbel noise to the logits and takes the largest (Gumbel-max); the noise of a
    token is a function of (seed, step, id) alone.

    Sorting a vocabulary at each step can cost more than a small model: only as many of the likeliest tokens are
    sorted as it takes to hold the nucleus.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(1)
    scores_BV = logits_BV.float() / sampling.temperature
    total_B1 = scores_BV.logsumexp(1, keepdim=True)
    vocabulary = scores_BV.shape[1]
    count = FIRST_CANDIDATES if sampling.top_p < 1 else vocabulary
    while True:
        top_BK, ids_BK = scores_BV.topk(min(count, vocabulary))
        inside_BK = _nucleus(top_BK, total_B1, sampling.top_p)
        if count >= vocabulary or not inside_BK[:, -1].any():
            break
        count *= 8
    noise_BK = -(-draws.uniforms(seeds_B[:, None], step, ids_BK).log()).log()
    best_B1 = (top_BK + noise_BK).masked_fill(~inside_BK, -torch.inf).argmax(1, keepdim=True)
    return ids_BK.gather(1, best_B1).squeeze(1)


def _nucleus(top_BK: Tensor, total_B1: Tensor, top_p: float) -> Tensor:
    """Which of the K largest scores belong to it; where the last one does, there may be more than these K."""
    share_BK = (top_BK - total_B1).double().exp()
    before_BK = share_BK.cumsum(1) - share_BK
    last_B1 = (before_BK < top_p).sum(1, keepdim=True) - 1
    return top_BK >= top_BK.gather(1, last_B1)
