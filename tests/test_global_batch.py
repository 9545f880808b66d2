"""The global batch is one batch: loss and every parameter gradient equal those of one process, in every mode."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from vlp import distributed, embeddings, resolve, similarity
from vlp.durations import Span
from vlp.embeddings import LossOf
from vlp.encoders import batch_norm
from vlp.encoders.captioner import CaptionerOptions
from vlp.encoders.fusion import FusionOptions
from vlp.encoders.openclip import ModelOptions, build, save_openclip_directory
from vlp.encoders.two_tower import TwoTower
from vlp.encoding import Encoding, crops
from vlp.features import Embeddings
from vlp.objectives import base
from vlp.types import Batch, Loss

GLOBAL_BATCH = 16
OBJECTIVES = resolve.names("vlp.objectives")
WAYS = [(1, 5), (2, 99), (4, 99), (2, 3)]  # processes, rows of a micro-batch; 16 rows, or 8, in uneven ones too
WAYS_IN_TILES = [(1, 99), (2, 3), (4, 99)]


def small_sizes() -> Iterator[tuple[ModuleType, str, Any]]:
    """Sizes that bring 16 rows to the ways of large batches: several tiles and strips, the last ones smaller.

    They are found by their names, so that those of a new objective or sum are made small, too.
    """
    small = {
        "MOST_DENSE_LOGITS": 0,
        "MOST_LOGITS": 3 * GLOBAL_BATCH,
        "TOKENS_OF_STRIP": 3 * 32,
        "TILE": (5, 7),
        "MOST_KEPT": 50,
    }
    places = [("vlp.similarity", name) for name in resolve.names("vlp.similarity")]
    places += [("vlp.objectives", name) for name in OBJECTIVES]
    modules = [similarity, *(importlib.import_module(f"{package}.{name}") for package, name in places)]
    for module in modules:
        for name in vars(module):
            if name.lstrip("_") in small:
                yield module, name, small[name.lstrip("_")]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of another width, picture size and length of texts."""
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 48, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    place = tmp_path_factory.mktemp("teacher")
    save_openclip_directory(build(ModelOptions(config=config), seed=8), place)
    return f"local-dir:{place}"


def global_batch(images: int = 1, texts: int = 1, seed: int = 3) -> Batch:
    """``images`` crops, ``texts`` captions of each picture; rows 2 and 9 say the same, rows 3 and 12 show the same."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (images, GLOBAL_BATCH, 3, 32, 32), generator=generator, dtype=torch.uint8)
    text = torch.randint(1, 49000, (texts, GLOBAL_BATCH, 16), generator=generator)
    text[..., 0] = 49406
    end_N = torch.randint(3, 12, (GLOBAL_BATCH,), generator=generator)
    places_L = torch.arange(16)
    text[:, places_L == end_N[:, None]] = 49407  # the end of text, where the text tower pools
    text[:, places_L > end_N[:, None]] = 0
    text[:, 9] = text[:, 2]
    picture_N = torch.arange(GLOBAL_BATCH)
    picture_N[12] = picture_N[3]
    hard = (text[0].roll(2, 1) + torch.arange(3)[:, None, None]) % 49000
    hard[..., 0], hard[..., -1] = 49406, 49407
    hard[0, 5] = text[0, 7]  # a hard caption of one picture is the caption of another
    there = torch.ones(hard.shape[:2], dtype=torch.bool)
    there[1:, 4], there[:, 11] = False, False
    names = tuple(str(row) for row in range(GLOBAL_BATCH))
    captions = tuple(f"picture {name}" for name in names)
    return Batch(image, text, names, captions, picture_N=picture_N, hard_text_KNL=hard, hard_mask_KN=there)


def losses_of(objective: base.Objective) -> tuple[LossOf | None, LossOf | None]:
    """As the trainer gives them: what compares rows, and what is a mean over them."""

    def loss_of(embedded: Embeddings) -> Loss:
        return base.combined_loss([objective], embedded)

    return (loss_of, None) if objective.couples_batch else (None, loss_of)


class Found(NamedTuple):
    """What a training step computed: means over the processes, and the gradient of every parameter."""

    loss: float
    parts: dict[str, float]
    gradients: dict[str, Tensor]


BUILT: dict[str, TwoTower] = {}


def fresh(options: ModelOptions, starts: dict[str, float]) -> TwoTower:
    """A model with seed 0; processes that are forked later copy it instead of building it again."""
    key = repr((options, starts))
    if key not in BUILT:
        BUILT[key] = build(options, seed=0, starts=starts)
    return deepcopy(BUILT[key], {id(BUILT[key].tokenizer): BUILT[key].tokenizer}).train()


def stepped(rank: int, world: int, config: dict[str, Any], entry: dict[str, Any], micro: int) -> Found:
    """One step of the trainer on this rank; where there is a momentum twin, the one after another step."""
    objective = base.parse(entry).at(Span(100, GLOBAL_BATCH, 1000), 50)
    fusion = FusionOptions(layers=1, width=16, heads=2) if objective.needs & {"fusion", "masked_text"} else None
    head = CaptionerOptions(layers=1, width=16, heads=2, queries=4) if "captions" in objective.needs else None
    model = fresh(ModelOptions(config=config, fusion=fusion, captioner=head), objective.initial_logits())
    batch_norm.synchronise(model.clip)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    encoding = Encoding(model, [objective], GLOBAL_BATCH)
    rows = GLOBAL_BATCH // world

    def step(seed: int) -> embeddings.Step:
        batch = global_batch(crops([objective]), base.text_views([objective]), seed)
        here = encoding.with_text_lengths(batch.rows(rank * rows, (rank + 1) * rows))
        return embeddings.backward(
            encoding.encoders(wrapped, here, seed),
            here,
            *losses_of(objective),
            micro_batch_size=micro,
            seeds=(seed, distributed.seed_of("test", seed, rank)),
            backward_of=lambda total: total.backward(),
            no_sync=wrapped.no_sync if world > 1 else nullcontext,
        )

    if encoding.momentum is not None:
        earlier = step(1)
        with torch.no_grad():  # so that the twin is no longer the model
            for parameter in model.parameters():
                parameter.add_(0.05 * parameter.roll(1, 0) if parameter.ndim else 0.0)
        encoding.after_step(earlier.embeddings)
        model.zero_grad()
    loss = step(3).loss
    local = {"loss": loss.total.item(), **{name: part.item() for name, part in loss.parts.items()}}
    means = distributed.mean_over_ranks(local)
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return Found(means.pop("loss"), means, found)


def gradients(rank: int, world: int, config: dict[str, Any], objective: str, micro: int) -> Any:
    """Loss and gradients of one objective."""
    found = stepped(rank, world, config, {"name": objective}, micro)
    return found.loss, found.gradients


def assert_equal_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    scale = max(g.abs().max().item() for g in expected.values())
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert actual[name] is not None, name
        torch.testing.assert_close(
            actual[name], gradient, rtol=1e-5, atol=tolerance * scale, msg=lambda m, n=name: n + m
        )


def assert_equal(actual: Found, expected: Found) -> None:
    assert actual.loss == pytest.approx(expected.loss, rel=1e-6, abs=1e-6)
    assert actual.parts == pytest.approx(expected.parts, rel=1e-5, abs=1e-6)
    # After a step of the twin, fp32 differs by 2e-6 of the largest gradient; a wrong gather does by 1e-2.
    assert_equal_gradients(actual.gradients, expected.gradients, 5e-6)


Case = tuple[tuple[int, int], bool]  # processes and micro-batch; in tiles
COMPLAINTS: dict[Case, dict[str, str]] = {}


@pytest.fixture
def complaint(request: pytest.FixtureRequest, run_ranks: Any, tiny_model: dict, teacher: str) -> Callable[..., str]:
    """``complaint(entry, way, in_tiles)``: in what an objective differs from itself on one process; empty if in none.

    Entries that one run of pytest asks for in one way are computed by the same processes: starting them costs more.
    """

    def asked(way: tuple[int, int]) -> list[dict[str, Any]]:
        same_test = [i for i in request.session.items if getattr(i, "originalname", "") == request.node.originalname]
        return [i.callspec.params["objective_entry"] for i in same_test if i.callspec.params["way"] == way]  # type: ignore[attr-defined]

    def compare(rank: int, world: int, micro: int, expected: dict[str, Found], in_tiles: bool) -> dict[str, str]:
        complaints = {}
        for entry in asked((world, micro)):
            with pytest.MonkeyPatch.context() as patch:
                for module, name, size in small_sizes() if in_tiles else ():
                    patch.setattr(module, name, size)
                try:
                    found = stepped(rank, world, tiny_model, given_teacher(entry), micro)
                    assert_equal(found, expected[str(entry)])
                    complaints[str(entry)] = ""
                except Exception:
                    complaints[str(entry)] = traceback.format_exc()
        return complaints

    def given_teacher(entry: dict[str, Any]) -> dict[str, Any]:
        return {**entry, "teacher": teacher} if "teacher" in entry else entry

    def complaint(entry: dict[str, Any], way: tuple[int, int], in_tiles: bool) -> str:
        if (way, in_tiles) not in COMPLAINTS:
            for other in asked(way):
                if str(other) not in EXPECTED:
                    EXPECTED[str(other)] = stepped(0, 1, tiny_model, given_teacher(other), GLOBAL_BATCH)
            world, micro = way
            if world == 1:
                of_ranks = [compare(0, 1, micro, EXPECTED, in_tiles)]
            else:
                of_ranks = run_ranks(compare, world, micro, EXPECTED, in_tiles)  # forked: they inherit EXPECTED
            COMPLAINTS[way, in_tiles] = {name: "".join(c[name] for c in of_ranks) for name in of_ranks[0]}
        return COMPLAINTS[way, in_tiles][str(entry)]

    return complaint


EXPECTED: dict[str, Found] = {}
EXPECTED_TRAINING: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    EXPECTED.clear()
    EXPECTED_TRAINING.clear()
    BUILT.clear()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_equals_one_process(complaint, objective_entry, way):
    found = complaint(objective_entry, way, in_tiles=False)
    assert not found, pytest.fail(found, pytrace=False)


@pytest.mark.parametrize("way", WAYS_IN_TILES, ids=str)
def test_large_batches_equal_small_ones(complaint, objective_entry, way):
    """In tiles and strips, losses and gradients stay what they are on one dense process."""
    found = complaint(objective_entry, way, in_tiles=True)
    assert not found, pytest.fail(found, pytrace=False)


def trained(rank: int, world: int, config: dict[str, Any], entries: list[dict[str, Any]], micro: int) -> Any:
    """Losses of five steps of the trainer with several objectives, and the weights after them."""
    parsed = [base.parse(entry) for entry in entries]
    starts = {name: value for objective in parsed for name, value in objective.initial_logits().items()}
    model = fresh(ModelOptions(config=config), starts)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    encoding = Encoding(model, parsed, GLOBAL_BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    rows = GLOBAL_BATCH // world
    losses = []
    for step in range(5):
        objectives = [objective.at(Span(5, GLOBAL_BATCH, 1000), step) for objective in parsed]
        batch = global_batch(crops(parsed), base.text_views(parsed), seed=step)
        here = batch.rows(rank * rows, (rank + 1) * rows)
        done = embeddings.backward(
            encoding.encoders(wrapped, here, step),
            here,
            *(partial(base.combined_loss, objectives, couples_batch=couples) for couples in (True, False)),
            micro_batch_size=micro,
            seeds=(step, distributed.seed_of("test", step, rank)),
            backward_of=lambda total: total.backward(),
            no_sync=wrapped.no_sync if world > 1 else nullcontext,
        )
        optimizer.step()
        optimizer.zero_grad()
        encoding.after_step(done.embeddings)
        local = {"loss": done.loss.total.item(), **{name: part.item() for name, part in done.loss.parts.items()}}
        losses.append(distributed.mean_over_ranks(local))
    return losses, {name: value.detach().clone() for name, value in model.named_parameters()}


SEVERAL = [
    # Its queue of two batches is full after two steps, and begins anew.
    {"name": "triple", "terms": ["cma", "imc"], "queue_size": 2 * GLOBAL_BATCH, "momentum": 0.7, "alpha": 0.4},
    {"name": "infonce", "captions": 2, "duplicates": "masked", "label_smoothing": 0.1, "hardest": 0.5},
    {"name": "siglip", "weight": {"start": 0, "end": 0.5, "after": "1 steps", "over": "2 steps"}},
    {"name": "alignment", "weight": {"start": 1, "end": 0, "over": "3 steps"}},
    {"name": "uniformity", "weight": 0.5},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_several_objectives_that_come_and_go_train_alike(run_ranks, tiny_model, way):
    """With a queue that wraps and texts that are gathered early, as earlier steps asked for them."""
    if "trained" not in EXPECTED_TRAINING:
        EXPECTED_TRAINING["trained"] = trained(0, 1, tiny_model, SEVERAL, GLOBAL_BATCH)
    losses, weights = EXPECTED_TRAINING["trained"]
    world, micro = way
    arguments = (tiny_model, SEVERAL, micro)
    for found, found_weights in [trained(0, 1, *arguments)] if world == 1 else run_ranks(trained, world, *arguments):
        for step, (actual, expected) in enumerate(zip(found, losses, strict=True)):
            assert actual == pytest.approx(expected, rel=2e-5, abs=1e-5), step
        torch.testing.assert_close(found_weights, weights, rtol=1e-4, atol=1e-6)
    assert len({frozenset(of_step) for of_step in losses}) > 1  # objectives came and went


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
    expected_loss, expected = gradients(0, 1, tiny_model, "one_sided", GLOBAL_BATCH)
    for loss, actual in run_ranks(gradients, world, tiny_model, "one_sided", micro):
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        assert_equal_gradients(actual, expected, 1e-5)  # its gradient nearly cancels
    assert expected["clip.logit_scale"] == 0


def test_every_parameter_gets_a_gradient(tiny_model):
    _, found = gradients(0, 1, tiny_model, "infonce", GLOBAL_BATCH)
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
            Encoding(model, [parsed], GLOBAL_BATCH).encoders(model, batch),
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
        return gradients(rank, world, tiny_model, "infonce", GLOBAL_BATCH)

    _, expected = gradients(0, 1, tiny_model, "infonce", GLOBAL_BATCH)
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
    arguments = ({**tiny_model, "vision_cfg": vision}, "infonce", GLOBAL_BATCH)
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
