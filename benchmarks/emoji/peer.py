"""The side of open_clip: its own training loop in its own environment, its checkpoints through vlp's evaluator.

open_clip's trainer needs webdataset 0.2; vlp uses webdataset 1. So the trainer runs as a separate process under the
Python of a second environment, and only files pass between the two.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures

from vlp.encoders.openclip import load
from vlp.encoders.source import CONFIG_FILE
from vlp.evaluation.run import evaluate, write_results
from vlp.types import UserError

MODEL_CFG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 6, "width": 192, "head_width": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}
MODEL_DIRECTORY = "vit-tiny"
BATCH_SIZE = 128
PACKAGES = ("open_clip_torch", "webdataset", "torch", "torchvision")
INSTALL = 'install there "open_clip_torch[training]" and "webdataset==0.2.86"'


@dataclass(frozen=True)
class Peer:
    """Runs of open_clip under ``root``, a directory ``seed-S`` each."""

    root: Path
    python: str | None
    shards: Sequence[str]
    sets: Sequence[Path]
    num_samples: int
    epochs: int
    device: str

    def directory(self, seed: int) -> Path:
        return self.root / f"seed-{seed}"

    def train(self, seed: int, environment: dict[str, str]) -> None:
        """Train to the end, or go on after the last whole epoch, and evaluate every epoch.

        Raises:
            UserError: another environment than needed, other arguments than the run that lies there, a failed run.
        """
        directory = self.directory(seed)
        self._check_arguments(seed)
        if not (directory / "training.json").is_file():
            versions = self._run_trainer(seed, environment)
            log = (directory / "out.log").read_text(encoding="utf-8")
            seconds, samples = figures.open_clip_seconds(log)
            _write(directory / "training.json", {"seconds": seconds, "samples": samples, "versions": versions})
        for epoch in range(1, self.epochs + 1):
            self._evaluate(seed, epoch)

    def finished(self, seed: int) -> bool:
        """Whether every epoch has been evaluated.

        Raises:
            UserError: the directory holds a run with other arguments.
        """
        self._check_arguments(seed)
        return (self.directory(seed) / "training.json").is_file() and all(
            (self._evaluation(seed, epoch) / f"{directory.name}.json").is_file()
            for epoch in range(1, self.epochs + 1)
            for directory in self.sets
        )

    def run(self, seed: int) -> figures.Run:
        """The figures of a finished seed, of every epoch."""
        training = _read(self.directory(seed) / "training.json")
        by_epoch = [figures.read_results(self._evaluation(seed, epoch)) for epoch in range(1, self.epochs + 1)]
        return figures.Run(figures.PEER, seed, training["seconds"], training["samples"], float(self.epochs), by_epoch)

    def versions(self, seeds: Sequence[int]) -> list[dict[str, str]]:
        """The different environments that trained ``seeds``: one, unless packages changed in between."""
        files = [self.directory(seed) / "training.json" for seed in seeds]
        found = [_read(path)["versions"] for path in files if path.is_file()]
        return [versions for i, versions in enumerate(found) if versions not in found[:i]]

    @property
    def train_data(self) -> str:
        return "::".join(os.path.abspath(path) for path in self.shards)

    def arguments(self, seed: int) -> list[str]:
        """open_clip's own defaults where nothing is said, such as its augmentation and the cosine schedule."""
        steps = math.ceil(self.num_samples / BATCH_SIZE) * self.epochs
        options = {
            "model": f"local-dir:{MODEL_DIRECTORY}",
            "train-data": self.train_data,
            "train-num-samples": self.num_samples,
            "dataset-type": "webdataset",
            "batch-size": BATCH_SIZE,
            "epochs": self.epochs,
            "lr": 1e-3,
            "beta1": 0.9,  # these three are what open_clip takes for a model with "vit" in its name
            "beta2": 0.98,
            "eps": 1e-6,
            "wd": 0.2,
            "warmup": math.ceil(steps / 10),
            "precision": "fp32",
            "device": self.device,
            "workers": 1,  # shards are of unequal size: several workers would repeat some and cut others
            "seed": seed,
            "logs": ".",
            "name": f"seed-{seed}",
            "log-every-n-steps": 10,
        }
        return [text for name, value in options.items() for text in (f"--{name}", str(value))] + ["--save-most-recent"]

    def _check_arguments(self, seed: int) -> None:
        stored = self.directory(seed) / "arguments.json"
        if stored.is_file() and _read(stored) != self.arguments(seed):
            raise UserError(f"{stored} has other arguments than this run would: choose another --runs, or remove it")

    def _run_trainer(self, seed: int, environment: dict[str, str]) -> dict[str, str]:
        """Run open_clip's trainer; returns the versions of its packages."""
        directory = self.directory(seed)
        if self.python is None:
            raise UserError(f"{directory} is not trained yet: name the Python of the peer with --open-clip-python")
        # not resolved: the link in bin/ is what makes it the Python of its environment
        python = os.path.abspath(self.python) if os.path.dirname(self.python) else self.python
        versions = peer_versions(python)
        _write(self.root / MODEL_DIRECTORY / CONFIG_FILE, {"model_cfg": MODEL_CFG})
        _write(directory / "arguments.json", self.arguments(seed))
        # open_clip refuses a name whose log exists, unless it resumes.
        resume = ["--resume", "latest"] if (directory / "out.log").is_file() else []
        command = [python, "-m", "open_clip_train.main", *self.arguments(seed), *resume]
        # The model is named relative to `root`, as open_clip looks for parts such as "coca" in the whole name.
        done = subprocess.run(command, cwd=self.root, env=environment, check=False)
        if done.returncode or not self._checkpoint(seed, self.epochs).is_file():
            raise UserError(
                f"open_clip's trainer wrote no {self._checkpoint(seed, self.epochs)} "
                f"(exit code {done.returncode}): see above, and {directory / 'out.log'}"
            )
        return versions

    def _checkpoint(self, seed: int, epoch: int) -> Path:
        return self.directory(seed) / "checkpoints" / f"epoch_{epoch}.pt"

    def _evaluation(self, seed: int, epoch: int) -> Path:
        return self.directory(seed) / "evaluation" / f"epoch-{epoch}"

    def _evaluate(self, seed: int, epoch: int) -> None:
        """Write ``seed-S/evaluation/epoch-E/SET.json``, unless it is there."""
        output = self._evaluation(seed, epoch)
        if all((output / f"{directory.name}.json").is_file() for directory in self.sets):
            return
        model = load(str(self._model_directory(seed, epoch)), self.device)
        described = f"seed-{seed} epoch {epoch}"
        results = evaluate(model, self.sets, 256, f"{MODEL_DIRECTORY} by open_clip", described)
        write_results(results, output / "{dataset}.json")

    def _model_directory(self, seed: int, epoch: int) -> Path:
        """The checkpoint as a MODEL: under the name that open_clip looks for, beside the configuration."""
        place = self.directory(seed) / "models" / f"epoch-{epoch}"
        _write(place / CONFIG_FILE, {"model_cfg": MODEL_CFG})
        link = place / "open_clip_pytorch_model.bin"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..", "..", "checkpoints", f"epoch_{epoch}.pt"))
        return place


def peer_versions(python: str) -> dict[str, str]:
    """Versions of `PACKAGES` under ``python``, and of Python itself.

    Raises:
        UserError: it cannot be run, lacks a package, or has a webdataset that open_clip's trainer fails with.
    """
    code = (
        "import importlib.metadata as m, json, platform\n"
        f"print(json.dumps({{'python': platform.python_version(), **{{p: m.version(p) for p in {PACKAGES!r}}}}}))"
    )
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        told = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        raise UserError(f"--open-clip-python {python} cannot be used ({told}): {INSTALL}") from error
    versions: dict[str, str] = json.loads(done.stdout)
    if not versions["webdataset"].startswith("0.2."):
        raise UserError(
            f"--open-clip-python {python} has webdataset {versions['webdataset']}, with which open_clip's trainer "
            f"fails: {INSTALL}"
        )
    return versions


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
