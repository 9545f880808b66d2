"""A run of two processes that is killed again and again ends with the weights of one that was left in peace.

    python benchmarks/faults/soak.py --faults 200 --json benchmarks/faults/results/soak.json

At random moments one of its processes is killed (SIGKILL), or both are told to stop (SIGTERM, as by a scheduler), or
one is frozen (SIGSTOP), which the watchdog has to notice and name. After each fault the same command starts the run
again. The script ends with an error unless every start goes on with the very sample after the newest whole checkpoint,
every batch is that of the undisturbed run, and the last weights, optimiser and losses are the same to the bit.

The processes are real; they are forked from this one, which has the libraries imported already, so that a fault takes
five to ten seconds. What a launcher does is done here: when a process has ended, the others get SIGTERM after two
seconds, and SIGKILL after another two.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing.connection
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from data_tools.scenes import ScenesOptions, write_scenes
from vlp.checkpoint.checksums import defect
from vlp.encoders.source import checkpoints, step_of
from vlp.watchdog import EXIT_CODE

_spec = importlib.util.spec_from_file_location("resume_runs", Path(__file__).parents[2] / "tests" / "resume_runs.py")
assert _spec is not None
assert _spec.loader is not None
runs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runs)

WORLD, BATCH = 2, 8
HANG_TIMEOUT_S = 3.0
KINDS = {"kill": 6, "term": 2, "stop": 1}  # and how often each comes


class Run(runs.Run):  # type: ignore[name-defined, misc]
    """``vlp train`` whose processes are children of this one."""

    def start(self, world: int = WORLD, *overrides: str, before: Callable[[], None] | None = None) -> None:
        log, arguments = self.logs / f"{self.attempts}", [*self._arguments, *overrides]
        self.ranks = [
            runs.FORK.Process(target=runs._train, args=(rank, world, log, arguments, before)) for rank in range(world)
        ]
        for process in self.ranks:
            process.start()
        self.attempts += 1

    def end(self) -> list[int]:
        """Exit codes, when all have ended: by themselves, or as a launcher ends those that outlive one."""
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            for process in self.ranks:
                if number is not None and process.is_alive():
                    os.kill(process.pid, number)
            until = time.monotonic() + 2
            for process in self.ranks:
                process.join(max(0.0, until - time.monotonic()))
        return [process.exitcode for process in self.ranks]

    def finish(self) -> None:
        for process in self.ranks:
            process.join(600)
        codes = [process.exitcode for process in self.ranks]
        assert codes == [0] * len(codes), self.said()


@dataclass
class Attempt:
    """A start of the run, and how it ended.

    Attributes:
        resumed: steps of the checkpoint that it went on from.
        taken: steps whose batch both processes have taken.
        end_s: from the fault to the first end of a process that was not killed.
    """

    fault: str
    resumed: int
    taken: int
    while_saving: bool
    end_s: float | None
    codes: list[int]


@dataclass
class Soak:
    """The disturbed run beside the undisturbed one."""

    disturbed: Run
    whole: Run
    steps: int
    dice: random.Random
    attempts: list[Attempt] = field(default_factory=list)

    def fault(self, kind: str) -> None:
        """Start the run, disturb it, see it end, and check what it did.

        Raises:
            AssertionError: something was lost, repeated beyond the checkpoint, or not noticed.
        """
        run, resumed = self.disturbed, newest_whole(self.disturbed.run_dir)
        run.start()
        self._reach_a_moment(resumed, started=kind == "stop")
        saving = any(run.run_dir.glob("checkpoints/.step-*.partial"))
        victim = self.dice.choice(run.ranks)
        number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}[kind]
        began = time.monotonic()
        for process in run.ranks if kind == "term" else [victim]:
            if process.is_alive():
                os.kill(process.pid, number)
        others = [process.sentinel for process in run.ranks if kind != "kill" or process != victim]
        ended = multiprocessing.connection.wait(others, 8 if kind == "kill" else 60)
        end_s = time.monotonic() - began if ended else None
        self._note(Attempt(kind, resumed, 0, saving, end_s, run.end()), victim.pid)

    def finish(self) -> None:
        """The run without a further fault; what it leaves is that of the undisturbed one, to the bit."""
        resumed = newest_whole(self.disturbed.run_dir)
        self.disturbed.start()
        self.disturbed.finish()
        self._note(Attempt("none", resumed, 0, False, None, [0] * WORLD), 0)
        (weights, state, losses), (e_weights, e_state, e_losses) = self.disturbed.result(), self.whole.result()
        assert weights.keys() == e_weights.keys()
        assert all(torch.equal(weights[name], e_weights[name]) for name in weights), "other weights"
        assert state == e_state, "other counters"
        assert losses == e_losses, "other losses"

    def _reach_a_moment(self, resumed: int, started: bool) -> None:
        """A random time of the start, or of one of the next steps."""
        run, batches = self.disturbed, self.dice.randint(int(started), max(1, min(self.steps - resumed - 1, 8)))
        while run.num_taken() < batches and all(process.is_alive() for process in run.ranks):
            time.sleep(0.0005)
        time.sleep(self.dice.random() * (0.05 if batches else 1.5))

    def _note(self, attempt: Attempt, victim: int) -> None:
        """Keep ``attempt``, and check what the process ``victim`` and the others did in it."""
        run, expected = self.disturbed, self.whole.whole_batches(0)
        taken = run.whole_batches(run.attempts - 1)
        attempt.taken = len(taken)
        self.attempts.append(attempt)
        starts = {min(rank) for rank in run.taken(run.attempts - 1) if rank}
        assert starts <= {attempt.resumed}, f"went on from {starts}, not from step {attempt.resumed}"
        assert all(taken[step] == expected[step] for step in taken), "other batches than the undisturbed run"
        saved = newest_whole(run.run_dir)
        assert saved >= attempt.resumed, f"step {attempt.resumed} was saved, but now only step {saved}"
        if attempt.fault == "term" and taken and attempt.codes == [0] * WORLD:
            assert saved == max(taken) + 1, f"told to stop after step {max(taken) + 1}, saved step {saved}"
        if attempt.fault == "stop" and EXIT_CODE in attempt.codes:
            assert re.search(rf"hung, no progress .*\(pid {victim}\) .* gives no sign of life", run.said()), run.said()

    def figures(self) -> dict[str, Any]:
        """Counts of what happened."""
        faults = [attempt for attempt in self.attempts if attempt.fault != "none"]
        of = {kind: [a for a in faults if a.fault == kind] for kind in KINDS}
        noticed = [a.end_s for a in of["stop"] if EXIT_CODE in a.codes and a.end_s]
        alone = [a.end_s for a in of["kill"] if a.taken and a.end_s]
        return {
            "steps": self.steps,
            "processes": WORLD,
            "faults": {kind: len(attempts) for kind, attempts in of.items()},
            "before the first step": sum(not a.taken for a in faults),
            "while a checkpoint was written": sum(a.while_saving for a in faults),
            "steps computed again": sum(a.taken for a in self.attempts) - self.steps,
            "frozen process noticed and named": len(noticed),
            "seconds until that": _spread(noticed),
            "seconds from SIGKILL of one process to the end of the other": _spread(alone),
            "seconds from SIGTERM to the end": _spread([a.end_s for a in of["term"] if a.taken and a.end_s]),
            "exit codes": dict(sorted(Counter(str(code) for a in faults for code in a.codes).items())),
            "equal to the bit": True,
        }


def newest_whole(run_dir: Path) -> int:
    """Steps of the newest checkpoint whose files are as their checksums say; 0 without one."""
    steps = [step_of(path) for path in checkpoints(run_dir) if not defect(path)]
    return max((step for step in steps if step is not None), default=0)


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "max": round(max(values), 2)} if values else {}


def soak(folder: Path, kinds: Sequence[str], seed: int) -> dict[str, Any]:
    """One fault of each of ``kinds``, then the end; the run is as long as they leave it something to do."""
    steps = 3 * len(kinds) + 12
    write_scenes(ScenesOptions(out=folder / "data", num_train=96, num_eval=8, samples_per_shard=32))
    tree = {
        "name": "soak",
        "seed": seed,
        "data": {"train": str(folder / "data" / "train"), "workers": 1, "shuffle_window": 16, "shuffle_streams": 2},
        "model": {"config": runs.TINY_MODEL},
        "objectives": [{"name": "infonce"}],
        "train": {"steps": steps, "global_batch_size": BATCH, "warmup": 2, "ema_decay": 0.9},
        "checkpoint": {"every": 2, "keep": 2},
        "track": {"every": 1, "tensorboard": False},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    whole = Run(recipe, folder / "whole")
    whole.start()
    whole.finish()
    disturbed = Run(recipe, folder / "disturbed", f"train.hang_timeout={HANG_TIMEOUT_S}")
    run = Soak(disturbed, whole, steps, random.Random(seed))
    for number, kind in enumerate(kinds, 1):
        run.fault(kind)
        print(f"{number}/{len(kinds)} {run.attempts[-1]}", file=sys.stderr, flush=True)
    run.finish()
    return run.figures()


def some(faults: int, seed: int) -> list[str]:
    """So many faults, each kind by its share, shuffled."""
    shares = [kind for kind, share in KINDS.items() for _ in range(share)]
    chosen = [shares[number % len(shares)] for number in range(faults)]
    random.Random(seed).shuffle(chosen)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of run and faults (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        figures = soak(Path(folder), some(arguments.faults, arguments.seed), arguments.seed)
        figures["minutes"] = round((time.monotonic() - began) / 60, 1)
    print(json.dumps(figures, indent=1))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
