"""Logits are fp32 whatever the towers are, and know where this process's rows stand in the global batch."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vlp import similarity
from vlp.features import Embeddings
from vlp.objectives import base


def features(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(64, 32, generator=generator) for _ in range(2))
    return image.to(dtype), (text + image).to(dtype)


def test_autocast_does_not_round_logits():
    image, text = features(torch.bfloat16)
    image.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        embedded = Embeddings.of(image, text, torch.tensor(100.0))
        logits = similarity.logits_per_image(embedded)
        loss = base.parse({"name": "infonce"}).loss(embedded).total
    assert logits.dtype == loss.dtype == torch.float32
    exact = 100 * normalize(image.detach().double(), dim=1) @ normalize(text.double(), dim=1).T
    torch.testing.assert_close(logits.detach().double(), exact, rtol=1e-5, atol=1e-4)
    rounded = 100 * normalize(image.detach().float(), dim=1).bfloat16() @ normalize(text.float(), dim=1).bfloat16().T
    assert (rounded.double() - exact).abs().max() > 100 * (logits.double() - exact).abs().max()


def rows_of_this_rank(rank: int, world: int) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    rows = slice(rank * 16, (rank + 1) * 16)
    image, text = features()
    embedded = Embeddings.of(image[rows], text[rows], torch.tensor(5.0), -1.0)
    return similarity.matches(embedded).tolist(), similarity.logits_per_image(embedded), embedded.text_BD


def test_matches_start_at_the_first_row_of_this_process(run_ranks):
    image, text = (normalize(f, dim=1) for f in features())
    for rank, (matches, logits, everybody) in enumerate(run_ranks(rows_of_this_rank, 4)):
        rows = slice(rank * 16, (rank + 1) * 16)
        assert matches == list(range(rows.start, rows.stop))
        torch.testing.assert_close(everybody, text)
        torch.testing.assert_close(logits.diagonal(rows.start), 5 * (image[rows] * text[rows]).sum(1) - 1)
