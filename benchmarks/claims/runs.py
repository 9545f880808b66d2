"""The runs of a claim: drawing their data, training them as processes side by side, reading what they left.

Everything lies in the work folder: ``data/OPTIONS/`` and ``runs/CLAIM/ARM/seed-S/``. What is finished is not repeated;
what was interrupted goes on from its last checkpoint, as ``vlp train`` does.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from claim import HERE, Claim, Run, Runs

from vlp import recipe
from vlp.run_directory import FREE_TO_CHANGE
from vlp.track import read_metrics
from vlp.types import UserError

PACKAGES = ("vlp", "torch", "open_clip_torch", "timm")
DONE, FAILED = "done.json", "failed.txt"
# What may differ from the recipe of a finished run: not its data and evaluation sets, which an arm may change.
_FREE = ("name", *(key for key in FREE_TO_CHANGE if key not in ("data.train", "evaluate.")))
TAIL = 15


@dataclass(frozen=True)
class Job:
    """The run of one arm with one seed; ``stem`` is that of the claim's file."""

    work: Path
    stem: str
    claim: Claim
    arm: str
    seed: int

    @property
    def label(self) -> str:
        return f"{self.claim.name} {self.arm}, seed {self.seed}"

    @property
    def processes(self) -> int:
        return self.claim.arms[self.arm].processes

    @property
    def run_dir(self) -> Path:
        return self.work / "runs" / self.stem / _slug(self.arm) / f"seed-{self.seed}"

    @property
    def log(self) -> Path:
        return self.run_dir.with_suffix(".log")

    @property
    def data_options(self) -> tuple[str, ...]:
        return self.claim.data[self.claim.arms[self.arm].data]

    @property
    def data(self) -> Path:
        return data_folder(self.work, self.data_options)

    @cached_property
    def overrides(self) -> list[str]:
        """What the runner and the arm change of the recipe."""
        overrides = [f"seed={self.seed}", f"run_dir={self.run_dir}"]
        if self.claim.data:
            sets = [self._set(name) for name in (*self.claim.sets, *self.claim.arms[self.arm].sets)]
            overrides += [f"data.train={self.data / 'train'}", f"evaluate.sets={json.dumps(sets)}"]
        return [*overrides, *self.claim.arms[self.arm].overrides]

    def _set(self, name: str) -> str:
        task, colon, folder = name.rpartition(":")
        return f"{task}{colon}{self.data / 'eval' / folder}"

    def missing_data(self) -> str | None:
        """The first folder of the recipe's own data and sets that is not there; drawn data are never missing."""
        train = self.recipe.data.train
        folders = [] if self.claim.data or not isinstance(train, list) else [*train, *self.recipe.evaluate.sets]
        return next((folder for folder in folders if not Path(folder).is_dir()), None)

    @cached_property
    def recipe(self) -> recipe.Recipe:
        return recipe.load(str(self.claim.recipe_file), self.overrides)

    def commands(self) -> list[list[str]]:
        """What is run one after another: training, and the probe where the claim has one."""
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes)]
        train = ["-m", "vlp", "train", str(self.claim.recipe_file), *self.overrides]
        commands = [[sys.executable, *(launch if self.processes > 1 else []), *train]]
        if self.claim.probe:
            commands.append([sys.executable, str(HERE / self.claim.probe), str(self.run_dir), str(self.data)])
        return commands

    def finished(self) -> bool:
        """Whether the run has been trained, and probed, to its end.

        Raises:
            UserError: the directory holds the run of another recipe.
        """
        if not (self.run_dir / DONE).is_file():
            return False
        differing = recipe.difference(self.run_dir / "recipe.yaml", self.recipe.to_yaml())
        changed = [key for key in differing if not key.startswith(_FREE)]
        if changed:
            raise UserError(
                f"{self.run_dir} holds a run of another recipe (different: {', '.join(changed[:5])}): "
                "choose another --work or remove it"
            )
        return True

    def finish(self, seconds: float, threads: int) -> None:
        """Note that all of it is done, and forget the weights: a hundred runs would fill a small disk."""
        shutil.rmtree(self.run_dir / "checkpoints", ignore_errors=True)
        done = {"seconds": round(seconds, 1), "threads": threads, "versions": versions(), "commit": commit()}
        (self.run_dir / DONE).write_text(json.dumps(done) + "\n", encoding="utf-8")

    def fail(self, problem: str) -> None:
        """Note that it came to no end, and why; the next try forgets it."""
        (self.run_dir / FAILED).write_text(problem + "\n", encoding="utf-8")

    def failed(self) -> bool:
        """Whether its last try came to no end."""
        return (self.run_dir / FAILED).is_file()

    def done(self) -> dict[str, Any]:
        """What `finish` noted."""
        noted: dict[str, Any] = json.loads((self.run_dir / DONE).read_text(encoding="utf-8"))
        return noted

    def run(self) -> Run:
        """What the finished run left."""
        rows = read_metrics(self.run_dir / "metrics.jsonl")
        evaluations = [row for row in rows if any(key.startswith("val/") for key in row)]
        figures = {key: value for key, value in (evaluations[-1] if evaluations else {}).items() if "/" in key}
        if self.claim.probe:
            figures |= json.loads((self.run_dir / "probe.json").read_text(encoding="utf-8"))
        losses = {int(row["step"]): row["train/loss"] for row in rows if "train/lr" in row}
        return Run(self.done()["seconds"], figures, losses)


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def commit() -> str | None:
    """The commit of the code, with ``-dirty`` where files differ from it; None where this is no checkout of git."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with suppress(OSError):
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        return said.stdout.strip() or None
    return None


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


def data_folder(work: Path, options: Sequence[str]) -> Path:
    """Where the scenes drawn with ``options`` lie, for all claims that want the same."""
    return work / "data" / _slug(" ".join(options))


def draw(work: Path, options: Sequence[str], threads: int) -> None:
    """Draw scenes, if they are not there: ``scenes.json`` is the last file that is written.

    Raises:
        UserError: they cannot be drawn; the tool has said why.
    """
    folder = data_folder(work, options)
    if (folder / "scenes.json").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "vlp", "data", "scenes", str(folder), *options]
    done = subprocess.run(command, env=_environment(threads), stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command[2:])} failed (exit code {done.returncode}): see above")


def write_layer(work: Path, data: Sequence[str], name: str, command: Sequence[str], threads: int) -> None:
    """Write the layer ``name`` beside the scenes drawn with ``data``; what is there is not written again.

    Args:
        command: the tool of ``vlp data`` and its options.

    Raises:
        UserError: it cannot be written; the tool has said why.
    """
    tool, *options = command
    shards = str(data_folder(work, data) / "train")
    called = [sys.executable, "-m", "vlp", "data", tool, shards, "--name", name, *options, "--workers", str(threads)]
    done = subprocess.run(called, env=_environment(threads), stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(called[2:6])} failed (exit code {done.returncode}): see above")


def jobs_of(work: Path, stem: str, claim: Claim, seeds: Sequence[int]) -> list[Job]:
    """Seed by seed, so that what is finished is always comparable."""
    return [Job(work, stem, claim, arm, seed) for seed in seeds for arm in claim.arms]


def collect(jobs: Sequence[Job]) -> Runs:
    """The finished ones."""
    runs: dict[str, dict[int, Run]] = {}
    for job in jobs:
        if job.finished():
            runs.setdefault(job.arm, {})[job.seed] = job.run()
    return runs


@dataclass
class _Active:
    """A job on its way: the process, the commands after it, the seconds of earlier ones."""

    job: Job
    commands: deque[list[str]]
    threads: int
    process: subprocess.Popen[bytes]
    started: float

    @classmethod
    def start(cls, job: Job, threads: int) -> _Active:
        job.run_dir.mkdir(parents=True, exist_ok=True)
        (job.run_dir / FAILED).unlink(missing_ok=True)
        commands = deque(job.commands())
        return cls(job, commands, threads, _start(commands.popleft(), job.log, threads, "wb"), time.monotonic())

    def poll(self) -> int | None:
        """The exit code once all its commands are done, or one has failed."""
        code = self.process.poll()
        if code == 0 and self.commands:
            self.process = _start(self.commands.popleft(), self.job.log, self.threads, "ab")
            return None
        return code

    def stop(self) -> None:
        """Ask for an end; vlp saves before it goes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)


def _start(command: list[str], log: Path, threads: int, mode: str) -> subprocess.Popen[bytes]:
    with log.open(mode) as file:
        # A session of its own: Ctrl-C reaches the runner alone, which tells the runs once.
        return subprocess.Popen(
            command, env=_environment(threads), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def train(jobs: Sequence[Job], at_once: int, threads: int, report: Callable[[Job, float, str], None]) -> None:
    """Run ``jobs``, as many at once as ``at_once`` processes allow (a job of more has the machine alone).

    ``report(job, seconds, problem)`` is called at the end of each; the problem is empty where all went well, and
    holds the end of its log otherwise. An interruption stops all, which save, and is passed on.
    """
    waiting, active = deque(jobs), list[_Active]()
    try:
        while waiting or active:
            busy = sum(one.job.processes for one in active)
            while waiting and (not busy or busy + waiting[0].processes <= at_once):
                active.append(_Active.start(waiting.popleft(), threads))
                busy += active[-1].job.processes
            for one in [one for one in active if one.poll() is not None]:
                active.remove(one)
                seconds = time.monotonic() - one.started
                code = one.process.returncode
                problem = "" if code == 0 else _problem(one.job, code)
                if problem:
                    one.job.fail(problem)
                else:
                    one.job.finish(seconds, threads)
                report(one.job, seconds, problem)
            time.sleep(0.1)
    except BaseException:
        for one in active:
            one.stop()
        for one in active:
            one.process.wait()
        raise


def _problem(job: Job, code: int) -> str:
    lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    return "\n".join([f"exit code {code}; the end of {job.log}:", *(f"    {line}" for line in lines)])
