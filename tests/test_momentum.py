"""The momentum twin follows the model, the queue keeps the last pairs, and neither depends on the processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import inspection
from vlp import recipe as recipes
from vlp.encoders import batch_norm
from vlp.encoders.openclip import ModelOptions, build
from vlp.encoders.two_tower import TwoTower
from vlp.encoding import Encoding, check
from vlp.features import Features
from vlp.momentum import Momentum, check_queue
from vlp.objectives import base
from vlp.types import Batch, UserError

BATCH = 4
RESNET = {"image_size": 32, "timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear"}


@pytest.fixture
def model(tiny_model: dict[str, Any]) -> TwoTower:
    return build(ModelOptions(config=tiny_model), seed=0)


def twin(model: TwoTower, decay: float = 0.9, queue_size: int = 0, wanted: frozenset[str] = frozenset()) -> Momentum:
    return Momentum(model, decay, queue_size, wanted, BATCH)


def moved(model: TwoTower) -> TwoTower:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def features(number: int, rows: int = BATCH, width: int = 32) -> Features:
    """Of step ``number``: all its entries are different."""
    generator = torch.Generator().manual_seed(number)
    image, text = (torch.randn(1, rows, width, generator=generator) for _ in range(2))
    normal = [nn.functional.normalize(x, dim=-1) for x in (image, text)]
    return Features(*normal, torch.tensor(1.0), torch.tensor(0.0))


def weights(momentum: Momentum) -> dict[str, Tensor]:
    return {n.removeprefix("twin/"): v.clone() for n, v in momentum.state().items() if n.startswith("twin/")}


def a_batch(rows: int = BATCH, views: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (views, rows, 3, 32, 32), generator=generator, dtype=torch.uint8)
    text = torch.randint(1, 49000, (1, rows, 16), generator=generator)
    text[..., 9], text[..., 10:] = 49407, 0
    return Batch(image, text, ("",) * rows, ("",) * rows)


# ---- The twin


def test_it_begins_as_the_model_and_moves_by_its_share(model: TwoTower) -> None:
    momentum = twin(model, 0.9)
    before = {name: value.clone() for name, value in model.clip.state_dict().items()}
    assert weights(momentum).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in weights(momentum).items())
    after = moved(model).clip.state_dict()
    momentum.update(model, features(0))
    for name, value in weights(momentum).items():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * after[name])
    assert not any(torch.equal(after[name], before[name]) for name in ("logit_scale", "visual.proj", "text_projection"))


@pytest.mark.parametrize(("decay", "follows"), [(1.0, False), (0.0, True)])
def test_decay_one_never_moves_and_zero_copies(model: TwoTower, decay: float, follows: bool) -> None:
    momentum = twin(model, decay)
    before = weights(momentum)
    momentum.update(moved(model), features(0))
    expected = model.clip.state_dict() if follows else before
    assert all(torch.equal(value, expected[name]) for name, value in weights(momentum).items())


def test_a_weight_with_two_names_moves_once_and_is_saved_once(model: TwoTower) -> None:
    blocks = model.clip.transformer.resblocks
    blocks.append(blocks[0])  # all weights of a block are tied to those of another
    momentum = twin(model, 0.9)
    before = weights(momentum)
    after = moved(model).clip.state_dict()
    momentum.update(model, features(0))
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    torch.testing.assert_close(weights(momentum)[name], 0.9 * before[name] + 0.1 * after[name])
    assert "transformer.resblocks.1.mlp.c_fc.weight" not in weights(momentum)
    again = twin(model)
    again.load_state(momentum.state())
    assert all(torch.equal(value, weights(momentum)[name]) for name, value in weights(again).items())


def test_it_encodes_without_gradient_and_dropout(tiny_model: dict[str, Any]) -> None:
    config = {**tiny_model, "vision_cfg": {**tiny_model["vision_cfg"], "patch_dropout": 0.5}}
    model = build(ModelOptions(config=config), seed=0).train()
    momentum = twin(model, wanted=frozenset({"image_tokens", "text_tokens"}))
    model.train()  # as the trainer does after an evaluation
    outputs = momentum.encode(a_batch())
    assert not any(value.requires_grad for value in outputs.values())
    again = momentum.encode(a_batch())
    assert all(torch.equal(value, again[name]) for name, value in outputs.items())
    assert outputs["image_tokens"].shape == (BATCH, 16, 32)
    assert outputs["text_mask"].sum(1).tolist() == [8] * BATCH


def test_it_sees_the_last_view_of_a_picture_alone(model: TwoTower) -> None:
    momentum, batch = twin(model), a_batch(views=3)
    expected = model.eval().encode_image(batch.image_VNCHW[2])
    torch.testing.assert_close(momentum.encode(batch)["image"], expected[:, None])


def test_batch_norms_of_the_twin_use_and_follow_running_statistics(tiny_model: dict[str, Any]) -> None:
    model = build(ModelOptions(config={**tiny_model, "vision_cfg": RESNET}), seed=0).train()
    momentum = twin(model, 0.75)
    name = "visual.trunk.bn1.running_mean"
    before = weights(momentum)
    model.encode_image(a_batch().image_NCHW)
    momentum.encode(a_batch())
    assert torch.equal(weights(momentum)[name], before[name]), "the twin's own pass changes nothing"
    momentum.update(model, features(0))
    torch.testing.assert_close(weights(momentum)[name], 0.25 * model.clip.state_dict()[name])
    assert weights(momentum)["visual.trunk.bn1.num_batches_tracked"] == 1


def encoded_with_batch_norms(rank: int, world: int, config: dict[str, Any]) -> Tensor:
    model = build(ModelOptions(config={**config, "vision_cfg": RESNET}), seed=0).train()
    batch_norm.synchronise(model.clip)
    momentum = twin(model)
    rows = BATCH // world
    return momentum.encode(a_batch().rows(rank * rows, (rank + 1) * rows))["image"]


def test_batch_norms_of_the_twin_need_no_other_process(run_ranks, tiny_model) -> None:
    config = {**tiny_model, "vision_cfg": RESNET}
    whole = encoded_with_batch_norms(0, 1, config)
    torch.testing.assert_close(torch.cat(run_ranks(encoded_with_batch_norms, 2, config)), whole)


# ---- The queue


def test_the_queue_fills_in_order_and_forgets_the_oldest_step(model: TwoTower) -> None:
    momentum = twin(model, queue_size=3 * BATCH)
    assert [len(x) for x in momentum.queue] == [0, 0]
    for step in range(5):
        momentum.update(model, features(step))
        places = dict(zip((0, 1, 2, 0, 1), range(step + 1), strict=False))  # place -> newest step there
        expected = [features(places[place]) for place in sorted(places)]
        assert torch.equal(momentum.queue.image_QD, torch.cat([e.image_ND for e in expected]))
        assert torch.equal(momentum.queue.text_QD, torch.cat([e.text_ND for e in expected]))


def test_the_queue_holds_detached_vectors_of_length_one(model: TwoTower) -> None:
    momentum = twin(model, queue_size=2 * BATCH)
    for step in range(3):
        found = features(step)
        found.image_VND.requires_grad_()
        momentum.update(model, found)
    for rows in momentum.queue:
        assert not rows.requires_grad
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(2 * BATCH))


def test_without_a_size_there_is_no_queue(model: TwoTower) -> None:
    momentum = twin(model)
    momentum.update(model, features(0))
    assert momentum.queue is None


def queued(rank: int, world: int, config: dict[str, Any], steps: int) -> Any:
    model = build(ModelOptions(config=config), seed=0)
    momentum = twin(model, queue_size=3 * BATCH)
    local = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for step in range(steps):
        whole = features(step)
        here = Features(whole.image_VND[:, local], whole.text_VND[:, local], whole.logit_scale, whole.logit_bias)
        momentum.update(model, here)
    return momentum.queue


@pytest.mark.parametrize("world", [2, 4])
def test_every_process_holds_the_same_queue_as_one(run_ranks, tiny_model, world: int) -> None:
    expected = queued(0, 1, tiny_model, 5)
    for found in run_ranks(queued, world, tiny_model, 5):
        assert torch.equal(found.image_QD, expected.image_QD)
        assert torch.equal(found.text_QD, expected.text_QD)


def test_what_is_saved_restores_twin_and_queue(model: TwoTower) -> None:
    momentum = twin(model, queue_size=3 * BATCH)
    for step in range(4):
        momentum.update(moved(model), features(step))
    other = twin(moved(model), queue_size=3 * BATCH)
    other.load_state({name: value.clone() for name, value in momentum.state().items()})
    assert all(torch.equal(other.state()[name], value) for name, value in momentum.state().items())
    for each in (momentum, other):
        each.update(model, features(9))
    assert torch.equal(other.queue.image_QD, momentum.queue.image_QD), "it goes on in the same place"


# ---- What cannot work is said before a run begins


def test_a_queue_must_be_a_multiple_of_the_batch(model: TwoTower) -> None:
    for size, cure in ((10, 8), (3, 4)):
        with pytest.raises(UserError, match=rf"queue_size {size} is no multiple of .* 4: write {cure}$"):
            twin(model, queue_size=size)


@pytest.mark.parametrize(("size", "samples", "most"), [(24, 31, 16), (16, 16, 8), (8, 15, 0), (65_536, 20_000, 19_992)])
def test_a_queue_and_a_batch_are_no_more_than_the_data(size: int, samples: int, most: int) -> None:
    """A pair that came already would be a negative of itself."""
    with pytest.raises(UserError, match=rf"queue_size {size} .* exceed the data set of {samples} .* at most {most}$"):
        check_queue(size, 8, samples)
    for fits in (0, most):
        check_queue(fits, 8, samples)
    check_queue(size, 8)


@pytest.mark.parametrize(
    ("entry", "vision", "sentence"),
    [
        ({"queue_size": 10}, {}, "queue_size 10 is no multiple"),
        ({}, {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 64}, "gives no patch tokens"),
    ],
)
def test_the_encoders_of_a_run_refuse(
    tiny_model: dict[str, Any], entry: dict[str, Any], vision: dict[str, Any], sentence: str
) -> None:
    config = {**tiny_model, "vision_cfg": {**tiny_model["vision_cfg"], **vision}}
    objectives = [base.parse({"name": "triple", "queue_size": 8, **entry})]
    model = build(ModelOptions(config=config), seed=0)
    for refuse in (lambda: check(model, objectives, BATCH), lambda: Encoding(model, objectives, BATCH)):
        with pytest.raises(UserError, match=sentence):
            refuse()


def test_inspection_says_what_triple_lacks(tiny_model: dict[str, Any], tmp_path: Path) -> None:
    write_scenes(ScenesOptions(out=tmp_path / "data", num_train=32, num_eval=8))
    tree = {
        "name": "test",
        "data": {"train": str(tmp_path / "data" / "train")},
        "model": {"config": tiny_model},
        "objectives": [{"name": "triple", "queue_size": 24}],
        "train": {"steps": 2, "global_batch_size": 8, "warmup": 0},
    }
    assert "momentum.text_tokens" in inspection.inspect(recipes.validate(tree, "test"))
    tree["objectives"][0]["queue_size"] = 20
    with pytest.raises(UserError, match=r"queue_size 20 is no multiple of train\.global_batch_size 8: write 16"):
        inspection.inspect(recipes.validate(tree, "test"))
