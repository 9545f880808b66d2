"""The ways to start a run on a cluster: Accelerate's configurations, and scripts for SLURM with a stand-in for it.

The scripts run as they are, with real torchrun and accelerate; only what they start in the end is no training but a
small program that writes down how it was started and which signals it got. The slow tests train.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate.commands.launch as launch_commands
import psutil
import pytest
import yaml
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from data_tools.scenes import ScenesOptions, write_scenes
from vlp.engines import launch
from vlp.track import read_metrics

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "recipes" / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("slurm/*.sbatch"))
# Tests are no package, so no import statement reaches it.
_spec = importlib.util.spec_from_file_location("slurm_stand_in", Path(__file__).with_name("slurm_stand_in.py"))
assert _spec is not None
assert _spec.loader is not None
slurm = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(slurm)

# Stands in for vlp: notes its start and its signals, and ends as $BEHAVIOUR says.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

wanted = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_DEEPSPEED")
signals = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, _: signals.append(number))
behaviour, rank = os.environ["BEHAVIOUR"], int(os.environ["RANK"])
note = {"arguments": sys.argv[1:], "environment": {k: os.environ[k] for k in wanted if k in os.environ}}
notes = Path(os.environ["NOTES"])
path = notes / f"{rank}-{len(list(notes.glob(f'{rank}-*')))}.json"
path.write_text(json.dumps(note))
if behaviour == "wait":
    while not signals:
        time.sleep(0.01)
    time.sleep(0.5)  # the save
    path.write_text(json.dumps({**note, "signals": signals}))
elif behaviour.isdigit():
    sys.exit(int(behaviour))
"""


class Job:
    """A script that SLURM would run, of two nodes with a task or a GPU each."""

    def __init__(self, folder: Path, script: str, *arguments: str, behaviour: str = "finish") -> None:
        self.notes, self._requeued = folder / "notes", folder / "requeued"
        self.notes.mkdir(exist_ok=True)
        slurm.install(folder / "bin")
        (folder / "vlp").mkdir(exist_ok=True)
        (folder / "vlp" / "__init__.py").touch()
        (folder / "vlp" / "__main__.py").write_text(PROGRAM)
        (folder / "bin" / "vlp").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/vlp/__main__.py" "$@"\n')
        (folder / "bin" / "vlp").chmod(0o755)
        self.process = subprocess.Popen(
            ["bash", str(LAUNCH / "slurm" / script), *arguments],
            env={**os.environ, **variables(folder), "PYTHONPATH": str(folder), "BEHAVIOUR": behaviour},
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )

    def starts(self) -> dict[str, Any]:
        """Name -> what the task noted: RANK-ATTEMPT."""
        return {path.stem: json.loads(path.read_text()) for path in self.notes.glob("*.json")}

    def signal_when_started(self, number: int, tasks: int = 2) -> None:
        while len([path for path in self.notes.glob("*.json") if path.stat().st_size]) < tasks:
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.01)
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Exit code, and what was said."""
        _, said = self.process.communicate(timeout=120)
        return self.process.returncode, said

    def requeued(self) -> list[str]:
        return self._requeued.read_text().split() if self._requeued.exists() else []


def variables(folder: Path) -> Mapping[str, str]:
    """What SLURM would set, of two nodes."""
    return {
        "PATH": f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "NOTES": str(folder / "notes"),
        "REQUEUED": str(folder / "requeued"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "here,here",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_GPUS_ON_NODE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


# ---- SLURM


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid(script: str) -> None:
    path = LAUNCH / "slurm" / script
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(path)], check=True)
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert options
    assert max(options) < first, "sbatch reads options up to the first command"
    assert not any("#" in lines[i][1:] for i in options)


ARGUMENTS = ("recipe.yaml", "name=two words", "train.lr=1e-3")
SLOW = pytest.mark.slow
STYLES = {"srun.sbatch": (), "torchrun.sbatch": (), "accelerate.sbatch": (str(LAUNCH / "accelerate/ddp.yaml"),)}


@pytest.mark.parametrize("script", ["srun.sbatch", "torchrun.sbatch", pytest.param("accelerate.sbatch", marks=SLOW)])
def test_each_rank_learns_who_it_is_and_gets_the_arguments(tmp_path: Path, script: str) -> None:
    job = Job(tmp_path, script, *STYLES[script], *ARGUMENTS)
    code, said = job.end()
    assert code == 0, said
    starts = job.starts()
    assert starts.keys() == {"0-0", "1-0"}
    for rank in (0, 1):
        start = starts[f"{rank}-0"]
        assert start["arguments"] == ["train", *ARGUMENTS]
        told = start["environment"]
        assert (told["RANK"], told["LOCAL_RANK"], told["WORLD_SIZE"]) == (str(rank), "0", "2")
        assert told["MASTER_ADDR"]
        assert int(told["MASTER_PORT"]) > 1024
    assert job.requeued() == []


def test_gpus_of_a_node_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.variables", lambda folder, given=variables: {**given(folder), "SLURM_NTASKS": "4"})
    job = Job(tmp_path, "srun.sbatch", "recipe.yaml")
    code, said = job.end()
    assert code == 0, said
    told = [job.starts()[f"{rank}-0"]["environment"] for rank in range(4)]
    assert [start["LOCAL_RANK"] for start in told] == ["0", "1", "0", "1"]
    assert len({(start["MASTER_ADDR"], start["MASTER_PORT"], start["WORLD_SIZE"]) for start in told}) == 1


@pytest.mark.parametrize(
    "script",
    ["srun.sbatch", pytest.param("torchrun.sbatch", marks=SLOW), pytest.param("accelerate.sbatch", marks=SLOW)],
)
def test_ahead_of_the_limit_the_run_saves_and_the_job_is_queued_again(tmp_path: Path, script: str) -> None:
    job = Job(tmp_path, script, *STYLES[script], "recipe.yaml", behaviour="wait")
    job.signal_when_started(signal.SIGUSR1)
    code, said = job.end()
    assert code == (0 if script == "srun.sbatch" else 1), said
    assert [start["signals"] for start in job.starts().values()] == [[signal.SIGUSR1]] * 2, "once each, and no restart"
    assert job.requeued() == [str(os.getpid())]


def test_preemption_ends_the_job_after_the_save(tmp_path: Path) -> None:
    """SLURM signals tasks and shell, and queues the job again itself."""
    job = Job(tmp_path, "srun.sbatch", "recipe.yaml", behaviour="wait")
    job.signal_when_started(signal.SIGTERM)
    time.sleep(0.2)
    assert job.process.poll() is None, "the shell outlives the save"
    for task in psutil.Process(job.process.pid).children():
        task.terminate()
    code, said = job.end()
    assert code == 0, said
    assert job.requeued() == []
    assert {"0-0", "1-0"} == job.starts().keys()


@pytest.mark.parametrize(("code", "starts"), [(75, 4), (1, 4), (2, 1)])
def test_a_rank_that_fails_starts_the_run_again_but_a_mistake_does_not(tmp_path: Path, code: int, starts: int) -> None:
    job = Job(tmp_path, "srun.sbatch", "recipe.yaml", behaviour=str(code))
    assert job.end()[0] != 0
    ports = [start["environment"]["MASTER_PORT"] for name, start in job.starts().items() if name.startswith("1-")]
    assert len(ports) == len(set(ports)) == starts
    assert job.requeued() == []


# ---- Accelerate

ENGINES = {
    "ddp": {"engine": "ddp"},
    "fsdp2": {"engine": "fsdp2", "reshard_after_forward": True},
    "deepspeed_zero1": {"engine": "zero1"},
    "deepspeed_zero2": {"engine": "zero2"},
    "deepspeed_zero3": {"engine": "zero3"},
}


def test_every_configuration_has_its_engine() -> None:
    assert {path.stem for path in LAUNCH.glob("accelerate/*.yaml")} == ENGINES.keys()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("machines", [1, 2])
def test_a_configuration_starts_the_engine_it_is_named_after(
    name: str, machines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config_file", str(LAUNCH / "accelerate" / f"{name}.yaml"), "--num_processes", "4"]
    arguments += ["--num_machines", str(machines), "--main_process_ip", "127.0.0.1", "--main_process_port", "29871"]
    chosen, defaults, _ = launch_commands._validate_launch_command(
        launch_commands.launch_command_parser().parse_args([*arguments, "-m", "vlp"])
    )
    if chosen.use_deepspeed:
        chosen.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        command, environment = prepare_deepspeed_cmd_env(chosen)
        assert command is None, "torchrun starts it, not DeepSpeed's launcher, which wants ssh and a host file"
    else:
        environment = prepare_multi_gpu_env(chosen)
    assert int(chosen.nproc_per_node) == 4 // machines
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no", "the recipe says the precision"
    with monkeypatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        settings = launch._settings(None)
    assert settings.items() >= ENGINES[name].items()
    sharing = settings.get("deepspeed", {}).get("zero_optimization", {})
    assert not sharing or sharing["offload_optimizer"]["device"] == "none"


# ---- Real training


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_scenes(ScenesOptions(out=folder / "data", num_train=64, num_eval=8, samples_per_shard=32))
    tree = {
        "name": "test",
        "data": {"train": str(folder / "data" / "train"), "workers": 1, "shuffle_window": 16, "shuffle_streams": 2},
        "model": {
            "config": {
                "embed_dim": 16,
                "vision_cfg": {"image_size": 24, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16},
                "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
            }
        },
        "objectives": [{"name": "infonce"}],
        "train": {"steps": 200, "global_batch_size": 8},
        "checkpoint": {"every": 1000},
        "track": {"every": 1, "tensorboard": False},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return folder / "recipe.yaml"


@pytest.mark.slow
def test_a_job_of_slurm_trains_saves_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    """With nothing but srun standing in: told to stop ahead of the limit, and submitted again as it was."""
    slurm.install(tmp_path / "bin")
    run_dir = tmp_path / "run"

    def submit() -> subprocess.Popen[str]:
        command = ["bash", str(LAUNCH / "slurm" / "srun.sbatch"), str(recipe), f"run_dir={run_dir}"]
        return subprocess.Popen(command, env={**os.environ, **variables(tmp_path)}, stderr=subprocess.PIPE, text=True)

    job = submit()
    while not (run_dir / "metrics.jsonl").exists() or len(read_metrics(run_dir / "metrics.jsonl")) < 5:
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    said = job.communicate(timeout=120)[1]
    assert job.returncode == 0, said
    assert said.count("saving, then stopping") == 1
    (stopped,) = re.findall(r"^stopped at step (\d+) and saved", said, re.MULTILINE)
    assert 5 <= int(stopped) < 200
    assert (tmp_path / "requeued").read_text().split() == [str(os.getpid())]

    job = submit()
    said = job.communicate(timeout=240)[1]
    assert job.returncode == 0, said
    assert f"going on from step {stopped}\n" in said
    assert [row["step"] for row in read_metrics(run_dir / "metrics.jsonl")] == list(range(1, 201))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2", "deepspeed_zero1"])
def test_accelerate_launch_trains_with_the_engine(recipe: Path, tmp_path: Path, name: str) -> None:
    configuration = LAUNCH / "accelerate" / f"{name}.yaml"
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--config_file",
        str(configuration),
    ]
    command += ["--num_processes", "2", "--main_process_port", "0"]
    command += ["-m", "vlp", "train", str(recipe), f"run_dir={tmp_path / 'run'}", "train.steps=2"]
    done = subprocess.run(command, env={**os.environ, **variables(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f", {ENGINES[name]['engine']}, fp32 towers" in done.stderr
    assert "global batch: 8 = 2 processes x 4" in done.stderr
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
