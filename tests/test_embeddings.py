"""From outputs to losses and back: micro-batches with cached gradients are the plain step, in every respect."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vlp import distributed
from vlp.durations import Span
from vlp.embeddings import Encoders, LossOf, Outputs, Step, backward, embed
from vlp.encoders.openclip import ModelOptions, build
from vlp.features import Embeddings
from vlp.objectives import base
from vlp.types import Batch, Loss

ROWS, WIDTH = 11, 6  # a prime: no micro-batch divides it


class Towers(nn.Module):
    """The smallest thing with two towers, dropout in both, and a scale."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.image = nn.Sequential(
            nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, WIDTH)
        )
        self.text = nn.Sequential(nn.EmbeddingBag(50, 16), nn.Dropout(dropout), nn.Linear(16, WIDTH))
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.calls: list[int] = []

    def forward(self, batch: Batch) -> Outputs:
        self.calls.append(len(batch))
        images, texts = batch.image_VNCHW.float() / 255, batch.text_VNL
        return {
            "image": torch.stack([self.image(image_NCHW) for image_NCHW in images], 1),
            "text": torch.stack([self.text(text_NL) for text_NL in texts], 1),
            "logit_scale": self.logit_scale,
            "logit_bias": torch.zeros_like(self.logit_scale),
        }


def batch_of(rows: int = ROWS, views: int = 1) -> Batch:
    random = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (views, rows, 3, 2, 2), generator=random, dtype=torch.uint8)
    text = torch.randint(0, 50, (views, rows, 4), generator=random)
    return Batch(image, text, tuple(str(row) for row in range(rows)), ("",) * rows)


def infonce(embedded: Embeddings) -> Loss:
    return base.combined_loss([base.parse({"name": "infonce"})], embedded)


def all_views(embedded: Embeddings) -> Loss:
    """Contrasts every view with every caption."""
    pairs = [(image, text) for image in embedded.image_VND for text in embedded.text_VND]
    total = torch.stack([ClipLoss()(image, text, embedded.logit_scale) for image, text in pairs]).mean()
    return Loss(total, {"views": total.detach()})


def agreement(embedded: Embeddings) -> Loss:
    """A mean over samples that uses the scale as well."""
    total = (embedded.logit_scale * (embedded.image_ND - embedded.text_ND).square().sum(-1)).mean()
    return Loss(total, {"agreement": total.detach()})


def step(
    towers: nn.Module,
    batch: Batch,
    coupled: LossOf | None,
    per_sample: LossOf | None = None,
    micro_batch_size: int = 99,
    scale: float = 1.0,
    no_sync: Callable[[], Any] = nullcontext,
    **others: Any,
) -> Step:
    return backward(
        Encoders(towers, **others),
        batch,
        coupled,
        per_sample,
        micro_batch_size=micro_batch_size,
        seeds=(3, 4),
        backward_of=lambda total: (scale * total).backward(),
        no_sync=no_sync,
    )


def gradients_of(towers: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in towers.named_parameters() if p.grad is not None}


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-6)


# ---- The scale, once


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 10])
def test_the_scale_takes_its_gradient_once(micro_batch_size):
    plain, cached = Towers(), Towers()
    step(plain, batch_of(), infonce)
    step(cached, batch_of(), infonce, micro_batch_size=micro_batch_size)
    assert_close(gradients_of(cached), gradients_of(plain))
    assert plain.logit_scale.grad != 0


def test_accumulation_that_evaluates_the_loss_for_each_micro_batch_multiplies_it():
    """Regression: open_clip's --accum-freq k gives the scale k times its gradient, and the towers the right one."""
    plain, accumulated = Towers(), Towers()
    step(plain, batch_of(), infonce)
    chunks = [batch_of().rows(start, start + 3) for start in range(0, ROWS, 3)]
    with torch.no_grad():
        kept = [accumulated(chunk) for chunk in chunks]
    for index, chunk in enumerate(chunks):
        outputs = accumulated(chunk)
        image, text = (
            torch.cat([*(k[name] for k in kept[:index]), outputs[name], *(k[name] for k in kept[index + 1 :])])[:, 0]
            for name in ("image", "text")
        )
        scale = outputs["logit_scale"].exp()
        ClipLoss()(F.normalize(image, dim=-1), F.normalize(text, dim=-1), scale).backward()
    theirs, ours = gradients_of(accumulated), gradients_of(plain)
    assert_close(theirs.pop("logit_scale"), len(chunks) * ours.pop("logit_scale"))
    assert_close(theirs, ours)


def test_a_coupled_loss_is_evaluated_once_a_step_on_all_rows():
    seen: list[int] = []

    def counted(embedded: Embeddings) -> Loss:
        seen.append(embedded.image_VND.shape[1])
        return infonce(embedded)

    towers = Towers()
    step(towers, batch_of(), counted, micro_batch_size=4)
    assert seen == [ROWS]
    assert towers.calls == [4, 4, 3, 4, 4, 3]
    towers.calls.clear()
    step(towers, batch_of(), counted)
    assert towers.calls == [ROWS]


def test_gradients_add_to_those_that_are_there():
    towers, once = Towers(), Towers()
    step(once, batch_of(), infonce)
    for _ in range(2):
        step(towers, batch_of(), infonce, micro_batch_size=4)
    assert_close(gradients_of(towers), {name: 2 * gradient for name, gradient in gradients_of(once).items()})


# ---- Random numbers, replayed


def in_one_graph(towers: nn.Module, batch: Batch, loss_of: LossOf, micro_batch_size: int) -> Tensor:
    """The same step with all micro-batches kept in one graph: what caching must equal."""
    outputs = []
    for index, start in enumerate(range(0, len(batch), micro_batch_size)):
        torch.manual_seed(distributed.seed_of(4, index))
        outputs.append(towers(batch.rows(start, start + micro_batch_size)))
    joined = {n: torch.cat([o[n] for o in outputs]) if v.ndim else v for n, v in outputs[0].items()}
    total = loss_of(embed(joined, batch)).total
    total.backward()
    return total


@pytest.mark.parametrize("views", [1, 3])
def test_dropout_is_replayed_in_every_view(views):
    whole, cached = Towers(dropout=0.5), Towers(dropout=0.5)
    expected = in_one_graph(whole, batch_of(views=views), all_views, 4)
    done = step(cached, batch_of(views=views), all_views, micro_batch_size=4)
    assert_close(done.loss.total, expected.detach())
    assert_close(gradients_of(cached), gradients_of(whole))
    assert not torch.equal(in_one_graph(Towers(), batch_of(views=views), all_views, 4), expected), "dropout matters"


def test_patch_dropout_is_replayed_in_every_view(tiny_model):
    config = {**tiny_model, "vision_cfg": {**tiny_model["vision_cfg"], "patch_dropout": 0.5}}
    random = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (2, 6, 3, 32, 32), generator=random, dtype=torch.uint8)
    text = torch.randint(1, 49000, (2, 6, 16), generator=random)
    batch = Batch(image, text, tuple("abcdef"), ("",) * 6)

    def model() -> tuple[nn.Module, Callable[[Batch], Outputs]]:
        made = build(ModelOptions(config=config), seed=0).train()
        return made, lambda batch: made(batch.image_VNCHW, batch.text_VNL)

    (whole, of_whole), (cached, of_cached) = model(), model()
    expected = in_one_graph(of_whole, batch, all_views, 4)  # type: ignore[arg-type]
    done = step(of_cached, batch, all_views, micro_batch_size=4)  # type: ignore[arg-type]
    assert_close(done.loss.total, expected.detach())
    actual, wanted = gradients_of(cached), gradients_of(whole)
    for name, gradient in wanted.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6)


# ---- Means over samples, inside the micro-batch


@pytest.mark.parametrize("coupled", [None, infonce])
@pytest.mark.parametrize("micro_batch_size", [1, 4, 10])
def test_a_mean_over_samples_weighs_micro_batches_by_their_rows(coupled, micro_batch_size):
    """Alone and beside a loss that compares rows: the last micro-batch is smaller than the others."""
    plain, cached = Towers(), Towers()
    expected = step(plain, batch_of(), coupled, agreement)
    done = step(cached, batch_of(), coupled, agreement, micro_batch_size)
    assert_close(done.loss.total, expected.loss.total)
    assert_close({n: torch.as_tensor(v) for n, v in done.loss.parts.items()}, expected.loss.parts)
    assert_close(gradients_of(cached), gradients_of(plain))


def test_a_mean_over_samples_sees_its_micro_batch_only():
    seen: list[int] = []

    def counted(embedded: Embeddings) -> Loss:
        seen.append(embedded.image_VND.shape[1])
        return agreement(embedded)

    step(Towers(), batch_of(), infonce, counted, micro_batch_size=4)
    assert seen == [4, 4, 3]


def test_what_guides_means_over_samples_comes_by_row_too():
    """The twin's and the teacher's features of a micro-batch are those of its rows."""
    twin, teacher = Towers(), Towers()
    with torch.no_grad():
        twin.image[1].weight.mul_(1.5)
        teacher.text[2].weight.mul_(-0.5)

    def guided(embedded: Embeddings) -> Loss:
        assert embedded.momentum is not None
        assert embedded.teacher is not None
        wanted = embedded.momentum.image_ND + embedded.teacher.text_ND
        return Loss((embedded.image_ND - wanted).square().sum(-1).mean())

    plain, cached = Towers(), Towers()
    guides = {"momentum": twin, "teacher": teacher}
    expected = step(plain, batch_of(), None, guided, **guides)
    done = step(cached, batch_of(), None, guided, 4, **guides)
    assert_close(done.loss.total, expected.loss.total)
    assert_close(gradients_of(cached), gradients_of(plain))
    for found in (done, expected):  # with which the twin moves and the queue fills
        assert found.embeddings.momentum is not None
        assert_close(found.embeddings.momentum.text_ND, twin_features(twin))


def twin_features(twin: Towers) -> Tensor:
    return F.normalize(twin(batch_of())["text"][:, 0], dim=-1)


# ---- Precision, locks, schedules


@pytest.mark.parametrize("micro_batch_size", [4, 99])
def test_a_scaled_loss_scales_every_gradient(micro_batch_size):
    """As fp16 does it."""
    plain, scaled = Towers(), Towers()
    step(plain, batch_of(), infonce, agreement, micro_batch_size)
    done = step(scaled, batch_of(), infonce, agreement, micro_batch_size, scale=1024.0)
    assert_close(gradients_of(scaled), {name: 1024 * gradient for name, gradient in gradients_of(plain).items()})
    assert_close(done.loss.total, step(Towers(), batch_of(), infonce, agreement).loss.total)


@pytest.mark.parametrize("locked", [["image"], ["text"], ["image", "text"], ["logit_scale"], ["image", "logit_scale"]])
def test_locked_parts_have_no_gradient_and_the_others_theirs(locked):
    def towers() -> Towers:
        made = Towers()
        for name in locked:
            getattr(made, name).requires_grad_(False)
        return made

    free, plain, cached = Towers(), towers(), towers()
    step(free, batch_of(), infonce)
    step(plain, batch_of(), infonce)
    step(cached, batch_of(), infonce, micro_batch_size=4)
    expected = {n: g for n, g in gradients_of(free).items() if n.split(".")[0] not in locked}
    assert_close(gradients_of(plain), expected)
    assert_close(gradients_of(cached), expected)


ENDS = {"start": 1, "end": 0, "after": 2}


@pytest.mark.parametrize("micro_batch_size", [4, 99])
@pytest.mark.parametrize("other", [None, agreement])
def test_an_objective_of_weight_0_is_left_out(other, micro_batch_size):
    """Also where it was the only one that compares rows."""
    objective = base.parse({"name": "infonce", "weight": ENDS})
    for finished, expected in ((1, infonce), (2, None)):
        now, plain, changed = objective.at(Span(10, ROWS, 100), finished), Towers(), Towers()
        done = step(changed, batch_of(), lambda e, now=now: base.combined_loss([now], e), other, micro_batch_size)
        if expected is None and other is None:
            assert done.loss.total == 0
            assert all(gradient.abs().sum() == 0 for gradient in gradients_of(changed).values())
            continue
        wanted = step(plain, batch_of(), expected, other)
        assert done.loss.parts.keys() == wanted.loss.parts.keys()
        assert_close(done.loss.total, wanted.loss.total)
        assert_close(gradients_of(changed), gradients_of(plain))


# ---- Several processes


def on_ranks(rank: int, world: int, micro_batch_size: int) -> tuple[int, dict[str, Tensor]]:
    """How often gradients were averaged, and what came out."""
    towers = Towers()
    wrapped = DistributedDataParallel(towers)
    averaged = 0

    def hook(state, bucket):
        nonlocal averaged
        averaged += 1
        reduced = dist.all_reduce(bucket.buffer() / world, async_op=True).get_future()
        return reduced.then(lambda done: done.value()[0])

    wrapped.register_comm_hook(None, hook)
    batch = batch_of(12).rows(rank * 6, rank * 6 + 6)
    step(wrapped, batch, infonce, agreement, micro_batch_size, no_sync=wrapped.no_sync)
    return averaged, gradients_of(towers)


def test_gradients_are_averaged_over_processes_once_a_step(run_ranks):
    one = Towers()
    step(one, batch_of(12), infonce, agreement)
    for micro_batch_size in (99, 4, 2):
        for averaged, found in run_ranks(on_ranks, 2, micro_batch_size):
            assert averaged == 1, "one bucket holds all"
            assert_close(found, gradients_of(one))


def through_its_end(rank: int, world: int, micro_batch_size: int) -> list[float]:
    """Gradients of the scale before and after the only objective's weight has become 0."""
    wrapped = DistributedDataParallel(Towers())
    objective, found = base.parse({"name": "infonce", "weight": ENDS}), []
    for finished in range(4):
        wrapped.zero_grad()
        now = objective.at(Span(10, 12, 100), finished)
        batch = batch_of(12).rows(rank * 6, rank * 6 + 6)
        loss_of: LossOf = lambda embedded, now=now: base.combined_loss([now], embedded)  # noqa: E731
        step(wrapped, batch, loss_of, None, micro_batch_size, no_sync=wrapped.no_sync)
        found.append(wrapped.module.logit_scale.grad.item())
    return found


@pytest.mark.parametrize("micro_batch_size", [99, 4])
def test_no_process_waits_for_an_objective_whose_weight_has_become_0(run_ranks, micro_batch_size):
    for found in run_ranks(through_its_end, 2, micro_batch_size):
        assert found[0] == found[1] != 0
        assert found[2:] == [0, 0]
