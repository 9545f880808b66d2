"""The encoders of a run deliver what its objectives need, and begin early with what others wait for."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from vlp import embeddings
from vlp.distributed import Gathering
from vlp.encoders.captioner import CaptionerOptions
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


# ---- Lengths of texts

WORDS = [1, 13, 4, 2, 9, 3, 3, 7]  # of each row of the global batch


def texts_of(words: list[int]) -> torch.Tensor:
    """NL: a start, as many words, an end, padding."""
    texts = torch.zeros(len(words), 16, dtype=torch.long)
    texts[:, 0] = 49406
    for row, number in enumerate(words):
        texts[row, 1 : number + 1] = torch.arange(100 + row, 100 + row + number)
        texts[row, number + 1] = 49407
    return texts


def batch_of_lengths() -> Batch:
    pictures = torch.randint(0, 256, (1, 8, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    text_VNL = torch.stack([texts_of(WORDS), texts_of(WORDS[::-1])])
    hard = torch.stack([texts_of(WORDS[3:] + WORDS[:3]) + (texts_of(WORDS[3:] + WORDS[:3]) == 101).long()] * 2)
    there = torch.ones(2, 8, dtype=torch.bool)
    return Batch(pictures, text_VNL, ("",) * 8, ("",) * 8, hard_text_KNL=hard, hard_mask_KN=there)


def step_by_lengths(rank: int, world: int, config: dict[str, Any], with_lengths: bool, micro: int) -> list[Any]:
    """Loss, gradients and the shapes that the model was given."""
    model = build(ModelOptions(config=config), seed=0).train()
    wrapped = DistributedDataParallel(model) if world > 1 else model
    objectives = [base.parse({"name": "infonce"}), base.parse({"name": "hard_negatives", "number": 2})]
    encoding = Encoding(model, objectives, 8)
    batch = batch_of_lengths().rows(rank * 8 // world, (rank + 1) * 8 // world)
    batch = encoding.with_text_lengths(batch) if with_lengths else batch
    shapes = []

    def watched(*arguments: Any) -> Any:
        shapes.append(arguments[7])
        return wrapped(*arguments)

    loss, _ = embeddings.backward(
        encoding.encoders(watched, batch.to("cpu")),
        batch,
        lambda e: base.combined_loss(objectives, e),
        None,
        micro_batch_size=micro,
        seeds=(1, 1),
        backward_of=lambda total: total.backward(),
        no_sync=wrapped.no_sync if world > 1 else nullcontext,
    )
    return [loss.total.item(), {n: p.grad.clone() for n, p in model.named_parameters()}, shapes]


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 3), (2, 4), (2, 2)])
def test_texts_without_padding_change_neither_loss_nor_gradient(run_ranks, tiny_model, world, micro):
    loss, gradients, shapes = step_by_lengths(0, 1, tiny_model, False, 8)
    assert shapes == [None]
    ranks = run_ranks(step_by_lengths, world, tiny_model, True, micro)
    assert sum(rank[0] for rank in ranks) / world == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(ranks[0][1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    for rank, (_, _, given) in enumerate(ranks):
        passes = len(given) // (1 if micro == 8 // world else 2)
        assert given[:passes] == given[-passes:], "both passes of cached gradients see the same"
        rows = slice(rank * 8 // world, (rank + 1) * 8 // world)
        hard = WORDS[3:] + WORDS[:3]
        assert sum(shape.ids for shape in given[:passes]) == sum(
            number + 2 for words in (WORDS, hard, hard) for number in words[rows]
        )


def test_lengths_are_told_where_features_are_all_that_is_wanted(tiny_model):
    batch = batch_of_lengths()
    for name, text_layers, told in (
        ("infonce", 0, True),
        ("matching", 0, False),
        ("captioning", 0, False),
        ("captioning", 1, True),
    ):
        head = CaptionerOptions(layers=1, width=16, heads=2, text_layers=text_layers)
        model = build(ModelOptions(config=tiny_model, captioner=head), seed=0)
        encoding = Encoding(model, [base.parse({"name": name})], 8)
        found = encoding.with_text_lengths(batch)
        assert (found.text_length_VN is not None) == (found.hard_length_KN is not None) == told
        if told:
            assert found.text_length_VN.tolist() == [[n + 2 for n in WORDS], [n + 2 for n in WORDS[::-1]]]
            assert found.rows(2, 5).text_length_VN.tolist() == [[6, 4, 11], [5, 11, 4]]
            assert found.rows(2, 5).hard_length_KN.shape == (2, 3)
            assert found.to("meta").text_length_VN.device.type == "cpu"
    siglip = {**tiny_model, "custom_text": True, "text_cfg": {**tiny_model["text_cfg"], "no_causal_mask": True}}
    encoding = Encoding(build(ModelOptions(config=siglip), seed=0), [base.parse({"name": "infonce"})], 8)
    assert encoding.with_text_lengths(batch) is batch
