"""Similarities of wholes with the parts of others, where the parts stay on their process."""

from __future__ import annotations

import torch
from torch import Tensor

from vlp import distributed
from vlp.similarity.rows import by_rows


def log_sum_exps_of_others(
    whole_BD: Tensor, part_CD: Tensor, owner_C: Tensor, logit_scale: Tensor, local: slice
) -> Tensor:
    """ln sum exp(s x_i.p) over the parts p of all rows but i, on all processes: N, in fp32 (fp64 for fp64 features).

    B C D multiply-adds, once more in backward and where strips are recomputed (see `by_rows`). Wholes travel instead
    of the parts, of which there are many more: each process sums over its own parts, W x B floats are gathered, and
    their gradients go back. Gradients are those of the sum of all processes' losses; the parts get none.

    Args:
        whole_BD: features of the global batch.
        part_CD: of this process's rows.
        owner_C: the row of the global batch that each part belongs to.
        logit_scale: factor of the similarities, a scalar.
        local: this process's rows of the global batch.

    Returns:
        The sum of nothing is the lowest finite number, so that neither it nor its gradient becomes NaN.
    """

    def of_strip(logits_nC: Tensor, rows: slice) -> Tensor:
        row_n = torch.arange(len(whole_BD), device=logits_nC.device)[rows]
        lowest = torch.finfo(logits_nC.dtype).min
        return logits_nC.masked_fill(row_n[:, None] == owner_C, lowest).logsumexp(1).clamp_min(lowest)

    here_B = by_rows(of_strip, whole_BD, part_CD.detach(), logit_scale)
    return distributed.gather_rows(here_B[None]).logsumexp(0)[local]
