"""The side of vlp: its recipes as anybody runs them, but for the seed and the places."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import figures

from vlp import recipe
from vlp.run_directory import FREE_TO_CHANGE
from vlp.track import read_metrics
from vlp.types import UserError


@dataclass(frozen=True)
class Ours:
    """Runs of the recipe ``name`` under ``root``, a directory ``seed-S`` each."""

    root: Path
    name: str
    sources: Sequence[Path]
    sets: Sequence[Path]
    num_samples: int

    @property
    def method(self) -> str:
        return f"vlp {self.name}"

    def overrides(self, seed: int) -> list[str]:
        """What the benchmark changes of the recipe."""
        return [
            f"seed={seed}",
            f"run_dir={self.root / f'seed-{seed}'}",
            f"data.train={json.dumps([str(source) for source in self.sources])}",
            f"evaluate.sets={json.dumps([str(directory) for directory in self.sets])}",
        ]

    def train(self, seed: int, environment: dict[str, str]) -> None:
        """Train to the end, or go on after the last checkpoint; what is finished stays as it is.

        Raises:
            UserError: the run did not finish; vlp has said why.
        """
        if self.finished(seed):
            return
        command = [sys.executable, "-m", "vlp", "train", self.name, *self.overrides(seed)]
        done = subprocess.run(command, env=environment, check=False)
        if done.returncode or not self.finished(seed):
            raise UserError(f"{' '.join(command[2:])} did not finish (exit code {done.returncode}): see above")

    def finished(self, seed: int) -> bool:
        """Whether the last step of the recipe has been evaluated.

        Raises:
            UserError: the directory holds a run of another recipe.
        """
        run_dir = self.root / f"seed-{seed}"
        evaluations = [run_dir / "evaluation" / f"{directory.name}.json" for directory in self.sets]
        if not all(path.is_file() for path in evaluations):
            return False
        wanted = recipe.load(self.name, self.overrides(seed))
        free = ("run_dir", *FREE_TO_CHANGE)
        changed = [
            key for key in recipe.difference(run_dir / "recipe.yaml", wanted.to_yaml()) if not key.startswith(free)
        ]
        if changed:
            raise UserError(
                f"{run_dir} holds a run of another recipe (different: {', '.join(changed[:5])}): "
                "choose another --runs or remove it"
            )
        last_step = wanted.span(self.num_samples).total_steps
        return all(json.loads(path.read_text(encoding="utf-8"))["step"] == last_step for path in evaluations)

    def run(self, seed: int) -> figures.Run:
        """The figures of a finished seed: of its last step, whatever came before."""
        run_dir = self.root / f"seed-{seed}"
        seconds, samples = figures.vlp_seconds(read_metrics(run_dir / "metrics.jsonl"))
        results = figures.read_results(run_dir / "evaluation")
        return figures.Run(self.method, seed, seconds, samples, samples / self.num_samples, [results])
