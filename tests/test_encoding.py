"""The encoders of a run deliver what its objectives need, and begin early with what others wait for."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from vlp import embeddings
from vlp.distributed import Gathering
from vlp.encoders.openclip import ModelOptions, build
from vlp.encoding import Encoding, crops
from vlp.features import Embeddings
from vlp.objectives import base
from vlp.types import Batch

ROWS = 4


def steps(rank: int, world: int, config: dict[str, Any], micro_batch_size: int) -> list[Any]:
    """(loss, gradients, whether the texts went early) of two steps on the same rows and weights."""
    model = build(ModelOptions(config=config), seed=0).train()
    wrapped = DistributedDataParallel(model) if world > 1 else model
    objectives = [base.parse({"name": "infonce"})]
    generator = torch.Generator().manual_seed(rank)
    batch = Batch(
        torch.randint(0, 256, (1, ROWS, 3, 32, 32), generator=generator, dtype=torch.uint8),
        torch.randint(1, 49000, (1, ROWS, 16), generator=generator),
        ("",) * ROWS,
        ("",) * ROWS,
    )
    encoding = Encoding(model, objectives, ROWS * world)
    found = []
    for _ in range(2):
        model.zero_grad()
        loss, embedded = embeddings.backward(
            encoding.encoders(wrapped, batch),
            batch,
            lambda e: base.combined_loss(objectives, e),
            None,
            micro_batch_size=micro_batch_size,
            seeds=(1, 1),
            backward_of=lambda total: total.backward(),
            no_sync=wrapped.no_sync if world > 1 else nullcontext,
        )
        encoding.after_step(embedded)
        early = isinstance(embedded.text_gathering, Gathering)
        found.append((loss.total.item(), [p.grad.clone() for p in model.parameters()], early))
    return found


def test_texts_that_were_asked_for_go_early_in_the_next_step_and_change_nothing(run_ranks, tiny_model):
    for first, second in run_ranks(steps, 2, tiny_model, ROWS):
        assert [first[2], second[2]] == [False, True]
        assert first[0] == second[0]
        for once, again in zip(first[1], second[1], strict=True):
            torch.testing.assert_close(again, once, rtol=1e-4, atol=1e-5)


def test_cached_micro_batches_and_one_process_gather_nothing_early(run_ranks, tiny_model):
    assert not any(early for ranks in run_ranks(steps, 2, tiny_model, ROWS // 2) for _, _, early in ranks)
    assert not any(early for _, _, early in steps(0, 1, tiny_model, ROWS))


def test_the_twin_sees_a_crop_of_its_own():
    infonce = base.parse({"name": "infonce"})
    assert crops([infonce]) == 1
    assert crops([infonce, base.parse({"name": "triple"})]) == 2


def gradient_after_a_look_without_one(rank: int, world: int) -> torch.Tensor:
    image, text = (torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (rank, 9 - rank))
    image.requires_grad_()
    embedded = Embeddings.of(image, text, torch.tensor(1.0))
    with torch.no_grad():
        assert embedded.image_BD.shape == (3 * world, 4)
    embedded.image_BD.square().sum(0)[0].backward()
    assert image.grad is not None
    return image.grad


def test_a_first_look_without_gradient_takes_nobody_elses_away(run_ranks):
    assert all(gradient.abs().sum() > 0 for gradient in run_ranks(gradient_after_a_look_without_one, 2))
