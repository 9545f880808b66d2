"""DDP, FSDP2 and ZeRO 1, 2, 3 over real gloo processes: the same losses, and one kind of checkpoint for all of them.

Tolerances: sums are rounded in another order under each engine, so over 20 steps in fp32 losses agree to 1e-5 of their
size, and Adam, which divides by the gradient's size, lets single weights differ by a fraction of a step.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401 - once, before the processes are forked
import pytest
import torch
import yaml
from safetensors.torch import load_file

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import distributed, recipe, trainer
from vlp.encoders.openclip import load
from vlp.engines import load as engines
from vlp.engines.launch import Launch
from vlp.track import read_metrics
from vlp.types import UserError

# Tests are no package, so no import statement reaches it.
_spec = importlib.util.spec_from_file_location("resume_runs", Path(__file__).parents[1] / "resume_runs.py")
assert _spec is not None
assert _spec.loader is not None
runs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runs)

STEPS, BATCH, LR = 20, 8, 1e-3
SHARDING = ("fsdp2", "zero1", "zero2", "zero3")
WITH_AVERAGE = ("fsdp2", "zero1", "zero2")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(ScenesOptions(out=out, num_train=64, num_eval=16, samples_per_shard=16))
    return out


@pytest.fixture(scope="module")
def model() -> dict[str, Any]:
    return {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }


def write_recipe(path: Path, scenes: Path, towers: dict[str, Any], **changes: Any) -> Path:
    tree: dict[str, Any] = {
        "name": "test",
        "data": {"train": str(scenes / "train"), "workers": 0},
        "model": {"config": towers},
        "objectives": [{"name": "infonce"}],
        "train": {"steps": STEPS, "global_batch_size": BATCH, "lr": LR, "warmup": 2, "clip_norm": 1.0},
        "evaluate": {"sets": [str(scenes / "eval" / "retrieval")]},
        "checkpoint": {"every": 5, "keep": 9},
        "track": {"every": 1, "tensorboard": False},
    }
    for section, values in changes.items():
        tree[section] = {**tree[section], **values} if isinstance(values, dict) else values
    path.write_text(yaml.safe_dump(tree))
    return path


def trained(path: Path, run_dir: Path, world: int, *overrides: str) -> Any:
    run = runs.Run(path, run_dir, *overrides)
    run.start(world)
    run.finish()
    return run


def losses(run_dir: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run_dir / "metrics.jsonl") if "train/lr" in row]


def tensors(run_dir: Path, of: str = "latest") -> dict[str, torch.Tensor]:
    files = sorted((run_dir / "checkpoints" / of).glob("*.safetensors"))
    found = {f"{file.stem}/{key}": value for file in files for key, value in load_file(file).items()}
    # The rows of a step stand in the queue in the order of processes.
    return {name: value.sort(0).values if "queue" in name and value.ndim else value for name, value in found.items()}


def assert_same(run_dir: Path, other: Path) -> None:
    assert losses(run_dir) == pytest.approx(losses(other), rel=1e-5)
    ours, theirs = tensors(run_dir), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, name
        assert ours[name].dtype == value.dtype, name
        # A fraction of a step for single weights, rounding for most.
        torch.testing.assert_close(ours[name], value, rtol=1e-2, atol=0.5 * LR)
        difference = (ours[name].double() - value.double()).norm() / (value.double().norm() + 1e-3)
        assert difference < 1e-3, name
    metrics = [
        {key: value for key, value in row.items() if key.startswith("val/")}
        for directory in (run_dir, other)
        for row in read_metrics(directory / "metrics.jsonl")[-1:]
    ]
    assert metrics[0] == pytest.approx(metrics[1], abs=0.07)  # of 16 pictures, one
    assert len(metrics[0]) > 4


@pytest.fixture(scope="module")
def by_ddp(tmp_path_factory: pytest.TempPathFactory, scenes: Path, model: dict[str, Any]) -> Any:
    """The run of one process, by what it trains."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(name: str, **changes: Any) -> tuple[Path, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            path = write_recipe(folder / "recipe.yaml", scenes, model, **changes)
            trained(path, folder / "run", 1)
            made[name] = path, folder / "run"
        return made[name]

    return get


@pytest.mark.parametrize("micro_batch_size", [4, 2])
@pytest.mark.parametrize("engine", ["ddp", *SHARDING])
def test_twenty_steps_under_an_engine_are_those_of_one_process(
    engine: str, micro_batch_size: int, by_ddp: Any, tmp_path: Path
) -> None:
    path, one = by_ddp("plain")
    overrides = (f"train.engine={engine}", f"train.micro_batch_size={micro_batch_size}")
    trained(path, tmp_path / "run", 2, *overrides)
    assert_same(tmp_path / "run", one)


@pytest.mark.parametrize("engine", SHARDING)
def test_towers_and_layers_have_their_rates_under_every_engine(engine: str, by_ddp: Any, tmp_path: Path) -> None:
    rates = {"lr_scale": {"image": 0.2, "other": 3.0}, "layer_decay": 0.6, "steps": 8}
    path, one = by_ddp("rates", train=rates)
    trained(path, tmp_path / "run", 2, f"train.engine={engine}")
    assert_same(tmp_path / "run", one)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_all_processes_end_early_at_the_same_step(engine: str, by_ddp: Any, tmp_path: Path) -> None:
    metric = "val/retrieval/image_to_text_R@5"
    train = {"lr": 0.03, "schedule": "constant", "early_stopping": {"metric": metric, "patience": 2}}
    path, _ = by_ddp("stopping", train=train, evaluate={"every": 2})
    trained(path, tmp_path / "run", 2, f"train.engine={engine}")
    state = json.loads((tmp_path / "run/checkpoints/latest/state.json").read_text())
    assert state["step"] == state["early_stopping"]["seen"] == state["early_stopping"]["best_step"] + 4 < STEPS
    assert load(str(tmp_path / "run")) is not None
    assert (tmp_path / "run/checkpoints/best").readlink().name == f"step-{state['step'] - 4:07d}"


@pytest.mark.parametrize("engine", SHARDING)
def test_lora_is_refused_where_weights_are_in_parts(engine: str, tmp_path: Path) -> None:
    tree = {"data": {"train": "x"}, "objectives": [{"name": "infonce"}], "train": {"steps": 1, "global_batch_size": 2}}
    with_lora = recipe.validate({"name": "x", "model": {"init": "x", "lora": {}}, **tree}, "test")
    with pytest.raises(UserError, match=f"model.lora does not go with {engine}"):
        engines.check(Launch(None, engine), with_lora)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", WITH_AVERAGE)
def test_averages_twins_queues_and_fusion_towers_are_those_of_one_process(
    engine: str, by_ddp: Any, tmp_path: Path
) -> None:
    path, one = by_ddp(
        "parts",
        objectives=[
            {"name": "infonce"},
            {"name": "triple", "queue_size": 16},
            {"name": "matching"},
        ],
        model={"fusion": {"layers": 1}},
        train={"ema_decay": 0.8, "micro_batch_size": 2},
    )
    trained(path, tmp_path / "run", 2, f"train.engine={engine}")
    assert_same(tmp_path / "run", one)


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_a_captioner_whose_weights_are_in_parts_tells_the_same(engine: str, by_ddp: Any, tmp_path: Path) -> None:
    path, one = by_ddp(
        "captioner",
        objectives=[{"name": "infonce"}, {"name": "captioning"}],
        model={"captioner": {"layers": 1}},
        train={"steps": 8},
    )
    trained(path, tmp_path / "run", 2, f"train.engine={engine}")
    assert_same(tmp_path / "run", one)


def test_a_run_goes_on_under_any_engine_and_with_any_number_of_processes(by_ddp: Any, tmp_path: Path) -> None:
    path, one = by_ddp("averaged", train={"ema_decay": 0.8})
    run = runs.Run(path, tmp_path / "run")
    stages = [("zero2", 2, 5), ("fsdp2", 4, 10), ("ddp", 1, 15), ("zero1", 4, 20)]
    for engine, world, stop in stages:
        run.start(world, f"train.engine={engine}")
        if stop < STEPS:
            run.kill_when(lambda stop=stop: (run.run_dir / f"checkpoints/step-{stop:07d}").exists())
        else:
            run.finish()
    assert "going on from step" in run.said()
    assert_same(run.run_dir, one)


def test_zero3_goes_on_where_ddp_was_killed_and_back(by_ddp: Any, tmp_path: Path) -> None:
    path, one = by_ddp("plain")
    run = runs.Run(path, tmp_path / "run")
    for engine, world, stop in [("zero3", 2, 5), ("zero3", 4, 10), ("ddp", 2, 15)]:
        run.start(world, f"train.engine={engine}")
        run.kill_when(lambda stop=stop: (run.run_dir / f"checkpoints/step-{stop:07d}").exists())
    run.start(2, "train.engine=zero3")
    run.finish()
    assert_same(run.run_dir, one)


@pytest.mark.parametrize("engine", SHARDING)
def test_what_an_engine_saves_is_whole_and_loads_without_it(engine: str, by_ddp: Any, tmp_path: Path) -> None:
    path, one = by_ddp("plain")
    trained(path, tmp_path / "run", 2, f"train.engine={engine}", "train.steps=5", "evaluate.sets=[]")
    ours, theirs = (load(str(folder / "checkpoints/step-0000005")) for folder in (tmp_path / "run", one))
    shapes = [{name: value.shape for name, value in found.state_dict().items()} for found in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert ours.logit_scale.ndim == 0


@pytest.mark.parametrize("engine", ["ddp", *SHARDING])
def test_bf16_under_an_engine_stays_near_that_of_ddp(engine: str, by_ddp: Any, tmp_path: Path) -> None:
    """Autocast over weights in fp32; FSDP2 rounds them before it sends them, ZeRO 3 has linear layers of its own."""
    path, one = by_ddp("bf16", train={"precision": "bf16", "steps": 8})
    trained(path, tmp_path / "run", 2, f"train.engine={engine}")
    assert losses(tmp_path / "run") == pytest.approx(losses(one), rel=2e-2 if engine in ("fsdp2", "zero3") else 3e-3)
    assert all(value.dtype == torch.float32 for value in tensors(tmp_path / "run").values())


def spoil_the_loss(rank: int, step: int) -> None:
    """In this process: what the ``rank``-th computes at ``step`` is not a number."""
    original = trainer._update

    def update(run: Any, batch: Any, done: int) -> Any:
        spoilt = run.engine.backward
        if done + 1 == step and distributed.rank() == rank:
            run.engine.backward = lambda loss: spoilt(loss * float("nan"))
        try:
            return original(run, batch, done)
        finally:
            run.engine.backward = spoilt

    trainer._update = update


@pytest.mark.parametrize("engine", ["ddp", *SHARDING])
def test_an_update_that_is_not_finite_is_left_out_alike(engine: str, by_ddp: Any, tmp_path: Path) -> None:
    """One of two processes has no gradient at step 3; the run of one process none at all there."""
    path, _ = by_ddp("plain")
    overrides = ("train.nonfinite=skip", "train.steps=8", "track.every=2")
    for name, by, world in (("one", "ddp", 1), ("run", engine, 2)):
        run = runs.Run(path, tmp_path / name, *overrides, f"train.engine={by}")
        run.start(world, before=lambda world=world: spoil_the_loss(world - 1, 3))
        run.finish()
        assert re.search("the gradient is (nan|inf) at step 3: its update was left out", run.said())
    assert_same(tmp_path / "run", tmp_path / "one")


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero1", "zero3"])
def test_weights_that_are_not_finite_are_not_saved(engine: str, by_ddp: Any, tmp_path: Path) -> None:
    path, _ = by_ddp("plain")
    overrides = ("train.lr=1e39", "train.warmup=0", "train.clip_norm=null", "checkpoint.every=1", "train.steps=3")
    run = runs.Run(path, tmp_path / "run", *overrides, f"train.engine={engine}")
    run.start(2)
    assert run.wait() == 2, run.said()
    assert "not finite at step 1" in run.said()
    assert not run.checkpoints()


@pytest.mark.parametrize(
    ("overrides", "world", "sentence"),
    [
        (("train.engine=fsdp2",), 1, "fsdp2 shares a model among processes, but there is one"),
        (("train.engine=zero3", "train.ema_decay=0.9"), 2, "zero3 does not go with train.ema_decay"),
        (("train.engine=zero2", "train.precision=fp16"), 2, "train.precision: fp16"),
        (("train.engine=fsdp",), 1, "train.engine"),
        (
            ("train.engine=zero3", "train.temperature={start: 0.2, end: 0.1, over: 50%}"),
            2,
            "zero3 does not go with a schedule of train.temperature",
        ),
        (("train.engine=zero3", "train.gradient_checkpointing=selective"), 2, "selective does not go with zero3"),
    ],
)
def test_what_an_engine_cannot_do_is_said_in_one_sentence(
    overrides: tuple[str, ...], world: int, sentence: str, scenes: Path, model: dict[str, Any], tmp_path: Path
) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", scenes, model)
    run = runs.Run(path, tmp_path / "run", *overrides)
    run.start(world)
    assert run.wait() == 2
    assert sentence in run.said()
    assert "Traceback" not in run.said()


@pytest.mark.parametrize(("objective", "named"), [("triple", "a momentum twin"), ("matching", "a fusion tower")])
def test_zero3_refuses_what_needs_whole_weights_at_all_times(
    objective: str, named: str, scenes: Path, model: dict[str, Any], tmp_path: Path
) -> None:
    fusion = {"fusion": {"layers": 1}} if objective == "matching" else {}
    path = write_recipe(
        tmp_path / "recipe.yaml", scenes, model, objectives=[{"name": "infonce"}, {"name": objective}], model=fusion
    )
    run = runs.Run(path, tmp_path / "run", "objectives.1.queue_size=0" if objective == "triple" else "seed=1")
    run.start(2, "train.engine=zero3")
    assert run.wait() == 2
    assert f"zero3 does not go with an objective with {named}" in run.said()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "fsdp2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "zero1"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3"),
    ],
)
def test_the_environment_of_accelerate_chooses_the_engine(
    environment: dict[str, str], expected: str, scenes: Path, model: dict[str, Any], tmp_path: Path
) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", scenes, model, train={"steps": 2}, evaluate={"sets": []})
    run = runs.Run(path, tmp_path / "run")
    run.start(2, before=lambda: runs.os.environ.update(environment))
    run.finish()
    assert f"cpu, {expected}, " in run.said()
    run.start(2, "train.engine=ddp", before=lambda: runs.os.environ.update(environment))
    assert run.wait() == 2
    assert f"train.engine is ddp, but accelerate launch was configured for {expected}" in run.said()


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version 1 is not supported"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "fsdp_offload_params is not supported",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "zero_stage 0 shards nothing"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "configured for bf16, but train.precision is fp32"),
    ],
)
def test_what_accelerate_may_ask_for_and_is_not_there_is_refused(
    environment: dict[str, str], sentence: str, scenes: Path, model: dict[str, Any], tmp_path: Path
) -> None:
    run = runs.Run(write_recipe(tmp_path / "recipe.yaml", scenes, model), tmp_path / "run")
    run.start(2, before=lambda: runs.os.environ.update(environment))
    assert run.wait() == 2
    assert sentence in run.said()
