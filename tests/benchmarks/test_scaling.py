"""The estimate for many GPUs: its arithmetic by hand, its bytes beside those that real processes send."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlp.bench import _traffic

ROOT = Path(__file__).parents[2]
NAMES = ("scaling_estimate", "scaling_page", "scaling")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The modules, which find each other beside them as when they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks" / "speed"))
        for name in NAMES:
            patch.delitem(sys.modules, name, raising=False)
        yield {name: importlib.import_module(name) for name in NAMES}
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture
def estimate(scripts: dict[str, ModuleType]) -> ModuleType:
    return scripts["scaling_estimate"]


@pytest.fixture
def model(estimate: ModuleType) -> Any:
    """Round numbers: a forward pass of a pair takes 1e9 FLOPs, two thirds of them for the picture."""
    return estimate.Model(
        name="round", weights=1_000_000, width=100, image=2e9 / 3, text=1e9 / 3, launches=10, saved=1e6, layers=4
    )


@pytest.fixture
def machine(estimate: ModuleType) -> Any:
    return estimate.Machine(
        peak=1e12,
        mfu=0.5,
        fp32_peak=1e12,
        loss_share=1.0,
        memory=2e9,
        spared_memory=0.0,
        memory_bandwidth=1e12,
        within=1e9,
        across=1e8,
        hidden=1.0,
        launch=1e-3,
        start=0.0,
        hop=1e-3,
    )


def test_arithmetic_of_one_step(estimate, model, machine):
    step = estimate.step(model, machine, gpus=8, rows=100)
    assert step.passes == 1
    assert step.rows == 800
    assert step.towers == pytest.approx(100 * 3e9 / 0.5e12)
    logits = 100 * 800
    assert step.loss == pytest.approx(6 * logits * 100 / 1e12 + logits * 40 / 1e12)
    assert step.optimiser == pytest.approx(28e6 / 1e12)
    # 7 x 100 x 100 floats there, behind the image tower, and back; the sums of 800 columns, twice there, once more.
    assert step.features == pytest.approx(280_000 / 1e9 + (2 + 1) * 800 * 4 / 1e9)
    assert step.gradients == pytest.approx(50e6 / 1e9)  # the last bucket; the rest, 7 ms, is behind the backward pass
    assert step.seconds == pytest.approx(sum((step.towers, step.loss, step.optimiser, step.features, step.gradients)))
    assert step.samples_per_second == pytest.approx(800 / step.seconds)


def test_open_clips_loss_waits_for_four_times_the_bytes_of_texts(estimate, model, machine):
    theirs = estimate.step(model, machine, gpus=8, rows=100, open_clip=True)
    assert theirs.features == pytest.approx(4 * 280_000 / 1e9)
    assert theirs.loss == pytest.approx(12 * 80_000 * 100 / 1e12 + 2 * 80_000 * 40 / 1e12)


def test_pairs_that_do_not_fit_cost_a_forward_pass_more(estimate, model, machine):
    assert model.rows_that_fit(machine) == 1984  # (2e9 - 16e6) / 1e6
    fits, cut = (estimate.step(model, machine, gpus=8, rows=rows) for rows in (1984, 3968))
    assert (fits.passes, cut.passes) == (1, 2)
    assert cut.towers == pytest.approx(2 * fits.towers * 4 / 3)


def test_no_step_is_shorter_than_starting_its_kernels(estimate, model, machine):
    assert estimate.step(model, machine, gpus=8, rows=1).towers == pytest.approx(10 * 1e-3)


def test_rings_cost_a_hop_a_node_and_trees_their_logarithm(machine):
    assert machine.sending(1e6, gpus=8) == pytest.approx(1e-3)
    assert machine.sending(1e6, gpus=64) == pytest.approx(7e-3 + 1e-2)
    assert machine.sending(1e6, gpus=64, tree=True) == pytest.approx(3e-3 + 1e-2)


@pytest.mark.parametrize(("engine", "floats"), [("ddp", 2), ("zero1", 3), ("fsdp2", 2)])
def test_engines_send_and_keep_what_they_must(estimate, scripts, model, engine, floats):
    assert estimate.gradient_bytes(model.weights, 4, engine) == pytest.approx(floats * 4 * 750_000)
    kept = {"ddp": 16, "zero1": 8 + 8 / 4, "fsdp2": 16 / 4}[engine]
    assert scripts["scaling_page"].states(model, 4, engine) == pytest.approx(kept * 1_000_000)


def test_weights_that_are_gathered_take_time(estimate, model, machine):
    ddp, zero1, fsdp2 = (
        estimate.step(model, machine, gpus=64, rows=10, engine=engine) for engine in ("ddp", "zero1", "fsdp2")
    )
    assert zero1.gradients == pytest.approx(ddp.gradients + 4e6 * 63 / 64 / 1e8 + 7e-3)
    assert fsdp2.gradients > 0
    assert zero1.optimiser == pytest.approx(ddp.optimiser / 64)
    slow = replace(machine, hidden=0.0)
    assert estimate.step(model, slow, 64, 10, "fsdp2").gradients > fsdp2.gradients


@pytest.fixture(scope="module")
def traffic(scripts: dict[str, ModuleType]) -> dict[str, dict[str, float]]:
    if not _traffic.can_count():
        pytest.skip("this system's sockets do not tell what they sent")
    return {engine: scripts["scaling"].sent(2, engine, rows=256) for engine in ("ddp", "fsdp2")}


def test_computed_bytes_are_those_that_processes_send(scripts, traffic):
    page = scripts["scaling_page"]
    rows = [*page._traffic({"rows": 256, "width": scripts["scaling"].TINY["embed_dim"], "traffic": {"2": traffic}})]
    assert [row[0].split(", ")[1] for row in rows][:4] == [
        "texts gathered",
        "their gradient scattered",
        "sums of the softmax",
        "open_clip's loss: both features",
    ]
    shares = {row[0].removeprefix("2 processes, "): float(row[3]) for row in rows}
    assert shares.pop("sums of the softmax") < 2  # messages of a few hundred bytes, with their heads
    assert all(0.99 < share < 1.06 for share in shares.values()), shares


def test_page_has_a_table_of_every_model_and_stays_what_it_is(scripts, model, tmp_path):
    page, estimate = scripts["scaling_page"], scripts["scaling_estimate"]
    found = {"gather": 1.0, "scatter": 1.0, "sums": 1.0, "open_clip": 1.0, "step": 1.0, "weights": 10.0}
    result = {
        "rows": 4,
        "width": 8,
        "traffic": {"2": {"ddp": found}},
        "models": {model.name: asdict(model)},
        "machine": asdict(estimate.Machine()),
    }
    path = tmp_path / "page.md"
    path.write_text(f"before\n{page.START}\nold\n{page.END}\nafter\n", encoding="utf-8")
    page.write(path, result)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "### round" in text
    assert all(f"| {gpus:,} |" in text for gpus in page.GPUS)
    page.write(path, result)
    assert path.read_text(encoding="utf-8") == text


def test_page_of_the_documentation_is_that_of_the_results(scripts):
    import json

    page = scripts["scaling_page"]
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    results = ROOT / "benchmarks" / "speed" / "results" / "scaling.json"
    tables = page.tables(json.loads(results.read_text(encoding="utf-8")))
    assert f"{page.START}\n\n{tables}\n\n{page.END}" in text
    assert "Nothing on this page ran on a GPU" in text
