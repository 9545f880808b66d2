"""The global batch is one batch: loss and every parameter gradient equal those of one process, in every mode."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from vlp import distributed, embeddings, resolve, similarity
from vlp.embeddings import LossOf
from vlp.encoders import batch_norm
from vlp.encoders.openclip import ModelOptions, build
from vlp.encoding import Encoding
from vlp.features import Embeddings
from vlp.objectives import base
from vlp.types import Batch, Loss

GLOBAL_BATCH = 16
OBJECTIVES = resolve.names("vlp.objectives")


def global_batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (GLOBAL_BATCH, 3, 32, 32), generator=generator, dtype=torch.uint8)
    text = torch.randint(1, 49000, (GLOBAL_BATCH, 16), generator=generator)
    text[:, 10] = 49407  # the end of text, where the text tower pools
    text[:, 11:] = 0
    return Batch(image[None], text[None], tuple(str(i) for i in range(GLOBAL_BATCH)), ("",) * GLOBAL_BATCH)


def losses_of(objective: base.Objective) -> tuple[LossOf | None, LossOf | None]:
    """As the trainer gives them: what compares rows, and what is a mean over them."""

    def loss_of(embedded: Embeddings) -> Loss:
        return base.combined_loss([objective], embedded)

    return (loss_of, None) if objective.couples_batch else (None, loss_of)


def gradients(rank: int, world: int, config: dict[str, Any], objective: str, micro: int, patch_dropout: float) -> Any:
    """Loss and gradients that a training step computes on this rank."""
    parsed = base.parse({"name": objective})
    config = {**config, "vision_cfg": {**config["vision_cfg"], "patch_dropout": patch_dropout}}
    model = build(ModelOptions(config=config), seed=0, starts=parsed.initial_logits()).train()
    batch_norm.synchronise(model.clip)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    rows = GLOBAL_BATCH // world
    loss, _ = embeddings.backward(
        Encoding(model, [parsed], GLOBAL_BATCH).encoders(wrapped),
        global_batch().rows(rank * rows, (rank + 1) * rows),
        *losses_of(parsed),
        micro_batch_size=micro,
        seeds=(1, distributed.seed_of("test", rank)),
        backward_of=lambda total: total.backward(),
        no_sync=wrapped.no_sync if world > 1 else nullcontext,
    )
    mean = distributed.mean_over_ranks({"loss": loss.total.item()}, torch.device("cpu"))["loss"]
    return mean, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def assert_equal_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    scale = max(g.abs().max().item() for g in expected.values())
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert actual[name] is not None, name
        torch.testing.assert_close(
            actual[name], gradient, rtol=1e-5, atol=tolerance * scale, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("world", "micro"), [(1, 5), (2, 99), (4, 99), (2, 3)])
def test_equals_one_process(run_ranks, tiny_model, objective, world, micro):
    expected_loss, expected = gradients(0, 1, tiny_model, objective, GLOBAL_BATCH, 0.0)
    for loss, actual in run_ranks(gradients, world, tiny_model, objective, micro, 0.0):
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        assert_equal_gradients(actual, expected)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("world", "micro"), [(1, 99), (2, 3), (4, 99)])
def test_large_batches_equal_small_ones(run_ranks, tiny_model, monkeypatch, objective, world, micro):
    """Where similarities are taken tile by tile, losses and gradients stay what they are on one dense process."""
    expected_loss, expected = gradients(0, 1, tiny_model, objective, GLOBAL_BATCH, 0.0)
    monkeypatch.setattr(similarity, "MOST_DENSE_LOGITS", 0)
    for loss, actual in run_ranks(gradients, world, tiny_model, objective, micro, 0.0):
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        assert_equal_gradients(actual, expected)


class OneSided(base.Objective, frozen=True, extra="forbid"):
    """Spread of the images alone: it leaves the text tower and the logit scale unused."""

    couples_batch: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image"})

    def loss(self, embeddings: Embeddings) -> Loss:
        return Loss((embeddings.image_ND @ embeddings.image_BD.T).mean())


@pytest.mark.parametrize(("world", "micro"), [(1, 5), (2, 99), (2, 3)])
def test_an_objective_may_leave_outputs_unused(run_ranks, tiny_model, monkeypatch, world, micro):
    monkeypatch.setattr(base, "parse", lambda entry: OneSided(**entry))
    expected_loss, expected = gradients(0, 1, tiny_model, "one_sided", GLOBAL_BATCH, 0.0)
    for loss, actual in run_ranks(gradients, world, tiny_model, "one_sided", micro, 0.0):
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        assert_equal_gradients(actual, expected, 1e-5)  # its gradient nearly cancels
    assert expected["clip.logit_scale"] == 0


def test_every_parameter_gets_a_gradient(tiny_model):
    _, found = gradients(0, 1, tiny_model, "infonce", GLOBAL_BATCH, 0.0)
    assert all(g is not None and g.abs().sum() > 0 for g in found.values())


def test_cached_gradients_replay_dropout(tiny_model):
    """With patch dropout, the second pass must drop the patches of the first: a finite difference tells."""
    parsed = base.parse({"name": "infonce"})
    config = {**tiny_model, "vision_cfg": {**tiny_model["vision_cfg"], "patch_dropout": 0.5}}
    model = build(ModelOptions(config=config), seed=0).train()
    batch = global_batch()

    def loss_and_gradient() -> tuple[float, Tensor]:
        model.zero_grad()
        loss, _ = embeddings.backward(
            Encoding(model, [parsed], GLOBAL_BATCH).encoders(model),
            batch,
            *losses_of(parsed),
            micro_batch_size=4,
            seeds=(7, 7),
            backward_of=lambda total: total.backward(),
            no_sync=nullcontext,
        )
        return loss.total.item(), model.clip.visual.proj.grad.clone()

    _, gradient = loss_and_gradient()
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        model.clip.visual.proj += step
    above, _ = loss_and_gradient()
    with torch.no_grad():
        model.clip.visual.proj -= 2 * step
    below, _ = loss_and_gradient()
    assert (above - below) / 2e-2 == pytest.approx(gradient.norm().item(), rel=2e-2)


def feature_gradients(rank: int, world: int, local_loss: bool, gather_with_grad: bool | None) -> tuple[Tensor, Tensor]:
    """Gradients of image features and logit scale, averaged over ranks as DDP does; None means ours."""
    generator = torch.Generator().manual_seed(5)
    image, text = (torch.randn(GLOBAL_BATCH, 8, generator=generator) for _ in range(2))
    rows = GLOBAL_BATCH // world
    local = slice(rank * rows, (rank + 1) * rows)
    image_leaf = image[local].clone().requires_grad_()
    text_leaf = text[local].clone().requires_grad_()
    log_scale = torch.tensor(2.0, requires_grad=True)
    if gather_with_grad is None:
        embedded = Embeddings.of(image_leaf, text_leaf, log_scale.exp())
        loss = base.parse({"name": "infonce"}).loss(embedded).total
    else:
        their_loss = ClipLoss(local_loss, gather_with_grad, rank=rank, world_size=world)
        loss = their_loss(normalize(image_leaf, dim=-1), normalize(text_leaf, dim=-1), log_scale.exp())
    loss.backward()
    assert image_leaf.grad is not None
    assert log_scale.grad is not None
    # DDP averages over ranks: a feature lives on one rank only, the scale on all.
    scale_gradient = log_scale.grad.clone()
    if world > 1:
        torch.distributed.all_reduce(scale_gradient)
    return image_leaf.grad / world, scale_gradient / world


def test_open_clip_agrees_where_it_is_exact_and_errs_where_it_is_known_to(run_ranks):
    """methods.md T1.1: gathering without gradient scales features by 1/W beside the logit scale, or biases them."""
    exact, exact_scale = feature_gradients(0, 1, True, None)

    def features(local_loss: bool, gather_with_grad: bool | None) -> tuple[Tensor, Tensor]:
        results = run_ranks(feature_gradients, 4, local_loss, gather_with_grad)
        return torch.cat([gradient for gradient, _ in results]), results[0][1]

    ours, our_scale = features(True, None)
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(our_scale, exact_scale, rtol=1e-5, atol=1e-7)
    for local_loss in (True, False):
        theirs, their_scale = features(local_loss, True)
        torch.testing.assert_close(theirs, exact, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(their_scale, exact_scale, rtol=1e-5, atol=1e-7)

    scaled, right_scale = features(False, False)
    torch.testing.assert_close(scaled, exact / 4, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(right_scale, exact_scale, rtol=1e-5, atol=1e-7)
    biased, _ = features(True, False)
    cosine = torch.nn.functional.cosine_similarity(biased.flatten(), exact.flatten(), dim=0)
    assert cosine < 0.999


def test_a_gather_without_gradient_would_be_caught(run_ranks, tiny_model, monkeypatch):
    """The equality above can fail: with the known wrong gather it does."""

    def wrong(rank: int, world: int) -> Any:
        def gather_without_gradient(local: Tensor) -> Tensor:
            parts = [torch.empty_like(local) for _ in range(world)]
            torch.distributed.all_gather(parts, local.detach().contiguous())
            parts[rank] = local
            return torch.cat(parts)

        monkeypatch.setattr(distributed, "gather_rows", gather_without_gradient)
        return gradients(rank, world, tiny_model, "infonce", GLOBAL_BATCH, 0.0)

    _, expected = gradients(0, 1, tiny_model, "infonce", GLOBAL_BATCH, 0.0)
    _, actual = run_ranks(wrong, 2)[0]
    with pytest.raises(AssertionError):
        assert_equal_gradients(actual, expected)


def test_loss_is_the_loss_of_open_clip_on_one_process():
    generator = torch.Generator().manual_seed(1)
    image, text = (normalize(torch.randn(9, 8, generator=generator), dim=-1) for _ in range(2))
    scale, bias = torch.tensor(3.0), torch.tensor(-2.0)
    embedded = Embeddings.of(image, text, scale, bias)

    def ours(name: str) -> Loss:
        return base.parse({"name": name}).loss(embedded)

    torch.testing.assert_close(
        ours("infonce").total, ClipLoss()(image, text, scale, logit_bias=None), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        ours("siglip").total, SigLipLoss()(image, text, scale, logit_bias=bias), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("world", [2, 4])
def test_batch_norms_see_the_global_batch(run_ranks, tiny_model, world):
    vision = {"image_size": 32, "timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear"}
    arguments = ({**tiny_model, "vision_cfg": vision}, "infonce", GLOBAL_BATCH, 0.0)
    loss, expected = gradients(0, 1, *arguments)
    for rank_loss, actual in run_ranks(gradients, world, *arguments):
        assert rank_loss == pytest.approx(loss, rel=1e-5)
        assert_equal_gradients(actual, expected, tolerance=1e-5)


def running_statistics(rank: int, world: int) -> Any:
    layer = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    batch_norm.synchronise(layer)
    values = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    layer(values[rank * 8 // world : (rank + 1) * 8 // world])
    return layer.state_dict(), layer.eval()(values)


def test_batch_norms_remember_the_global_batch(run_ranks):
    expected, normed = running_statistics(0, 1)
    for actual, normed_there in run_ranks(running_statistics, 2):
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(normed_there, normed)
