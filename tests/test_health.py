"""An update that is not finite leaves no trace, what happened is told with the keys of the batch, nobody cries wolf."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vlp.health import (
    IN_A_ROW,
    OVERFLOWS_IN_A_ROW,
    READ_AFTER,
    Health,
    HealthOptions,
    drift,
    running_statistics,
    veto,
)
from vlp.spikes import Spikes
from vlp.track import read_metrics
from vlp.types import UserError

NAN = math.nan


def health(run_dir: Path, nonfinite: str = "stop", **more: Any) -> Health:
    return Health(HealthOptions(nonfinite=nonfinite), run_dir, warmup_steps=0, **more)


def read_events(run_dir: Path) -> list[Any]:
    path = run_dir / "health.jsonl"
    return [SimpleNamespace(**row) for row in read_metrics(path)] if path.exists() else []


def watch(watched: Health, figures: list[tuple[float, float]], first: int = 1) -> None:
    for step, (loss, grad_norm) in enumerate(figures, first):
        watched.step(step, [f"key-{step}"], torch.tensor(loss), torch.tensor(grad_norm))


# ---- An update that is not finite is not made


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))


def _local(value: Tensor) -> Tensor:
    return (value.to_local() if isinstance(value, DTensor) else value).detach().clone()


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value for fields in optimizer.state.values() for value in fields.values()]
    return [_local(value) for value in [*model.parameters(), *moments]]


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, rows_N6: Tensor) -> Tensor:
    model(rows_N6).square().mean().backward()
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
    veto(optimizer, grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return grad_norm


def _good_bad_good(model: nn.Module, rank: int) -> tuple[bool, bool, bool]:
    """Whether a bad update left all as it was, the next good one moved it, and the steps were counted right."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    good_N6 = torch.ones(4, 6) + rank
    bad_N6 = good_N6.clone()
    if rank == 1:  # one process alone has bad rows
        bad_N6[0, 0] = NAN
    assert torch.isfinite(_update(model, optimizer, good_N6))
    before = _state(model, optimizer)
    assert not torch.isfinite(_update(model, optimizer, bad_N6))
    after = _state(model, optimizer)
    assert torch.isfinite(_update(model, optimizer, good_N6))
    moved = _state(model, optimizer)
    untouched = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    steps = {float(fields["step"]) for fields in optimizer.state.values()}
    return untouched, not any(torch.equal(a, b) for a, b in zip(after, moved, strict=True)), steps == {2.0}


def test_an_update_that_is_not_finite_leaves_weights_moments_and_steps_alone():
    assert _good_bad_good(_model(), rank=1) == (True, True, True)


def test_the_very_first_update_can_be_left_out():
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    before = [_local(p) for p in model.parameters()]
    _update(model, optimizer, torch.full((4, 6), math.inf))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert {float(fields["step"]) for fields in optimizer.state.values()} == {0.0}


def test_a_gradient_that_is_infinite_but_no_nan_counts():
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    before = [_local(p) for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    veto(optimizer, torch.tensor(math.inf))
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_an_optimiser_that_knows_no_veto_refuses():
    model = _model()
    with pytest.raises(AssertionError, match="found_inf"):
        _update(model, torch.optim.AdamW(model.parameters(), foreach=True), torch.ones(4, 6))


def _under_ddp(rank: int, world: int) -> tuple[bool, bool, bool]:
    return _good_bad_good(DistributedDataParallel(_model()), rank)


def _under_fsdp2(rank: int, world: int) -> tuple[bool, bool, bool]:
    model, mesh = _model(), init_device_mesh("cpu", (world,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert isinstance(model[0].weight, DTensor)
    return _good_bad_good(model, rank)


@pytest.mark.parametrize("engine", [_under_ddp, _under_fsdp2])
def test_bad_rows_of_one_process_stop_the_update_of_all(run_ranks, engine):
    assert run_ranks(engine, 2) == [(True, True, True)] * 2


def test_what_a_forward_pass_did_to_running_statistics_is_taken_back(tmp_path):
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4), nn.BatchNorm1d(4))
    model[3].eval()  # locked: its statistics do not move
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    watched = health(tmp_path, "skip", statistics=running_statistics(model))
    before: dict[str, Tensor] = {}
    for step, value in enumerate((1.0, NAN, 2.0), 1):
        rows_N6 = torch.randn(8, 6) * value
        loss = model(rows_N6).square().mean()
        loss.backward()
        loss = loss.nan_to_num()  # the gradient alone decides
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        veto(optimizer, grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        watched.step(step, [], loss, grad_norm)
        after = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == ({"1.running_mean", "1.running_var"} if step == 3 else set())
        before = after
    watched.check(3, model.state_dict())


def test_weights_that_diverged_are_not_saved(tmp_path):
    model, watched = _model(), health(tmp_path)
    watched.check(1, model.state_dict())
    with torch.no_grad():
        model[2].bias[1] = math.inf
    with pytest.raises(UserError, match=r"train: not finite at step 2: 2\.bias: .*the last checkpoint stays"):
        watched.check(2, model.state_dict())


# ---- What is told, and when it ends the run


def test_all_is_well(tmp_path):
    watched = health(tmp_path)
    watch(watched, [(2.0, 1.0)] * 3)
    watched.read()
    watched.read()
    assert watched.metrics() == {"train/skipped_updates": 0.0}
    assert not (tmp_path / "health.jsonl").exists()


def test_nothing_is_looked_at_before_it_is_read(tmp_path):
    watched = health(tmp_path)
    watch(watched, [(NAN, NAN)])
    assert watched.metrics() == {"train/skipped_updates": 0.0}
    with pytest.raises(UserError, match="the loss is nan at step 1"):
        watched.read()


def test_stopping_names_the_step_the_cure_and_the_keys(tmp_path, capsys):
    watched = health(tmp_path)
    watch(watched, [(2.0, 1.0), (NAN, NAN), (2.0, 1.0)], first=41)
    with pytest.raises(UserError, match=r"the loss is nan at step 42.*train\.clip_norm.*train\.nonfinite=skip"):
        watched.read()
    (event,) = read_events(tmp_path)
    assert (event.step, event.kind, event.loss, event.grad_norm) == (42, "nonfinite", None, None)
    assert (event.ranks, event.keys) == ([0], [["key-42"]])
    assert "left out" in event.note
    assert event.note in capsys.readouterr().err
    assert json.loads((tmp_path / "health.jsonl").read_text())["loss"] is None, "no NaN, which is no JSON"


def test_a_gradient_alone_counts(tmp_path):
    watched = health(tmp_path)
    watch(watched, [(2.0, math.inf)])
    with pytest.raises(UserError, match="the gradient is inf at step 1: its update was left out"):
        watched.read()
    assert read_events(tmp_path)[0].loss == 2.0


def test_a_loss_alone_is_told_with_the_update_that_was_made(tmp_path):
    watched = health(tmp_path)
    watch(watched, [(math.inf, 0.5)])
    with pytest.raises(UserError, match="the loss is inf at step 1: its update was finite, and made"):
        watched.read()


def test_skipping_counts_and_goes_on(tmp_path):
    watched = health(tmp_path, "skip")
    watch(watched, [(2.0, 1.0), (2.0, NAN), (2.0, 1.0), (NAN, NAN)])
    watched.read()
    assert watched.metrics() == {"train/skipped_updates": 2.0}
    assert watched.metrics() == {"train/skipped_updates": 0.0}, "since the last row"
    assert [event.step for event in read_events(tmp_path)] == [2, 4]


def test_skipping_ends_when_it_is_no_accident(tmp_path):
    watched = health(tmp_path, "skip")
    watch(watched, [(2.0, NAN)] * (IN_A_ROW - 1) + [(2.0, 1.0)])
    watch(watched, [(2.0, NAN)] * (IN_A_ROW - 1), first=IN_A_ROW + 1)
    watched.read()
    watch(watched, [(2.0, NAN)], first=2 * IN_A_ROW)  # the count goes on from read to read
    with pytest.raises(UserError, match=f"{IN_A_ROW} updates in a row, up to step {2 * IN_A_ROW}"):
        watched.read()


def test_a_scaler_that_looks_for_its_scale_is_no_event(tmp_path):
    watched = health(tmp_path, scaled=True)
    watch(watched, [(2.0, math.inf)] * (OVERFLOWS_IN_A_ROW - 1))
    watched.read()
    assert watched.metrics() == {"train/skipped_updates": OVERFLOWS_IN_A_ROW - 1}
    assert read_events(tmp_path) == []
    watch(watched, [(2.0, math.inf)], first=OVERFLOWS_IN_A_ROW)
    with pytest.raises(UserError, match=r"train\.precision=bf16"):
        watched.read()


def test_under_a_scaler_the_loss_still_counts(tmp_path):
    watched = health(tmp_path, scaled=True)
    watch(watched, [(NAN, NAN)])
    with pytest.raises(UserError, match="the loss is nan"):
        watched.read()


def test_keys_are_not_kept_for_ever(tmp_path):
    watched = health(tmp_path)
    watch(watched, [(2.0, 1.0)] * (READ_AFTER - 1))
    with pytest.raises(UserError, match=f"step {READ_AFTER}:"):
        watch(watched, [(2.0, NAN)], first=READ_AFTER)


def _two_ranks_of_which_one_is_ill(rank: int, world: int, folder: str) -> tuple[str, dict[str, float]]:
    watched = health(Path(folder), "skip")
    watched.step(1, [f"a{rank}", f"b{rank}"], torch.tensor(1.0 + rank), torch.tensor(1.0))
    watched.step(2, [f"c{rank}", f"d{rank}"], torch.tensor(NAN if rank == 1 else 3.0), torch.tensor(NAN))
    watched.read()
    told = watched.metrics()
    stopping = health(Path(folder) / "none")
    stopping.run_dir.mkdir(exist_ok=True)
    stopping.step(3, [], torch.tensor(math.inf if rank == 1 else 0.0), torch.tensor(1.0))
    try:
        stopping.read()
    except UserError as error:
        return str(error), told
    return "", told


def test_all_ranks_agree_and_the_keys_of_all_are_written_once(run_ranks, tmp_path):
    (first, told), (second, also_told) = run_ranks(_two_ranks_of_which_one_is_ill, 2, str(tmp_path))
    assert first == second != ""
    assert told == also_told == {"train/skipped_updates": 1.0}
    (event,) = read_events(tmp_path)
    assert (event.step, event.ranks, event.keys) == (2, [1], [["c0", "d0"], ["c1", "d1"]])


# ---- Spikes


def spikes(losses: Any, warmup: int = 0) -> list[int]:
    told = Spikes(warmup)
    return [step for step, loss in enumerate(losses, 1) if told.usual(step, float(loss)) is not None]


def ordinary_curves(seed: int) -> dict[str, np.ndarray]:
    """A few thousand losses as runs have them."""
    draw = np.random.default_rng(seed)
    steps = np.arange(3000)
    noise, falling = draw.standard_normal(len(steps)), 5 * np.exp(-steps / 800) + 1
    wander = np.cumsum(0.02 * draw.standard_normal(len(steps)))
    return {
        "falling": falling * (1 + 0.05 * noise),
        "falling fast": 8 * np.exp(-steps / 100) * np.exp(0.1 * noise) + 0.01,
        "plateau, then a drop": np.where(steps < 1500, 6.2, 4.0) + 0.1 * noise,
        "rising slowly": (1 + steps / 1500) * (1 + 0.05 * noise),
        "up and down by the epoch": falling * (1 + 0.05 * noise) * (1 + 0.1 * (steps // 500 % 2)),
        "skewed": 0.1 * np.exp(0.3 * noise),
        "wandering": falling * np.exp(wander - wander.mean()) * (1 + 0.02 * noise),
        "below zero": -3 + 0.1 * noise + np.exp(-steps / 500),
        "constant": np.full(len(steps), 4.852),
    }


@pytest.mark.parametrize("seed", range(4))
def test_no_false_alarm_on_ordinary_curves(seed):
    assert {name: spikes(losses) for name, losses in ordinary_curves(seed).items() if spikes(losses)} == {}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("curve", ["falling", "rising slowly", "skewed", "below zero"])
def test_a_spike_is_seen_once(seed, curve):
    losses = ordinary_curves(seed)[curve]
    around = losses[2000:2100]
    height = np.median(around) + 15 * (np.quantile(around, 0.95) - np.median(around))
    losses[2000:2010] = height  # it takes some steps to come down
    losses[2500] = height
    assert spikes(losses) == [2001, 2501]


def test_warm_up_is_not_judged():
    losses = np.full(300, 4.0)
    losses[100] = losses[200] = 9.0
    assert spikes(losses, warmup=150) == [201]


def test_a_spike_is_a_line_and_a_row_and_does_not_stop(tmp_path, capsys):
    watched = health(tmp_path)
    watch(watched, [(2.0 + 0.01 * (step % 5), 1.0) for step in range(60)])
    watch(watched, [(7.5, 9.0)], first=61)
    watched.read()
    (event,) = read_events(tmp_path)
    assert (event.kind, event.step, event.loss, event.grad_norm) == ("spike", 61, 7.5, 9.0)
    assert event.keys == [["key-61"]]
    assert "the loss jumped to 7.5 at step 61, from a median of 2.02" in capsys.readouterr().err


# ---- Drift


def _drift(rank: int, world: int, kind: str, folder: str) -> Any:
    model = _model()
    if kind == "last bit" and rank == 1:
        with torch.no_grad():
            weight = model[2].weight.view(torch.int32)
            weight[0, 0] += 1
    if kind == "sharded":
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    watched = health(Path(folder))
    watched.compare(7, dict(model.named_parameters()))
    if kind == "sharded":
        watched.check(7, dict(model.named_parameters()))
        if rank == 1:
            model[2].weight.to_local().data.fill_(NAN)
        with pytest.raises(UserError, match=r"at step 8: 2\.weight: "):
            watched.check(8, dict(model.named_parameters()))
        return watched.metrics()
    return drift(dict(model.named_parameters())), watched.metrics()["train/rank_drift"]


def test_a_single_bit_is_drift(run_ranks, tmp_path):
    assert run_ranks(_drift, 2, "none", str(tmp_path)) == [(([], []), 0.0)] * 2
    assert read_events(tmp_path) == []
    assert run_ranks(_drift, 2, "last bit", str(tmp_path)) == [((["2.weight"], [1]), 0.5)] * 2
    (event,) = read_events(tmp_path)
    assert (event.kind, event.step, event.ranks) == ("drift", 7, [1])
    assert event.note == "weights of rank 1 differ from the others' (2.weight)"


def test_sharded_weights_cannot_drift(run_ranks, tmp_path):
    assert run_ranks(_drift, 2, "sharded", str(tmp_path)) == [{"train/skipped_updates": 0.0}] * 2


def test_a_single_process_has_nobody_to_drift_from(tmp_path):
    watched = health(tmp_path)
    watched.compare(1, dict(_model().named_parameters()))
    assert "train/rank_drift" not in watched.metrics()
