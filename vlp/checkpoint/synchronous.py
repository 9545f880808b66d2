"""Atomic save and load in the training loop itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlp.checkpoint.resume import resuming
from vlp.encoders.openclip import save_openclip_directory
from vlp.encoders.source import CAPTIONER_FILE, WEIGHTS_FILE, checkpoints
from vlp.encoders.two_tower import TwoTower
from vlp.types import UserError

OPTIMIZER_FILE = "optimizer.safetensors"
MOMENTUM_FILE = "momentum.safetensors"  # the twin and its queue
FUSION_FILE = "fusion.safetensors"
STATE = ("step", "samples", "num_samples", "data", "bad_samples", "scaler")


def save(
    run_dir: Path,
    step: int,
    model: TwoTower,
    optimizer: torch.optim.Optimizer,
    beside: Mapping[str, Mapping[str, Tensor]],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write ``checkpoints/step-NNNNNNN`` beside its place, rename it, point ``latest`` at it, drop the oldest.

    ``beside``: file name -> further tensors, read again by `load`; a file without any is not written.

    Raises:
        UserError: it cannot be written; the checkpoint before stays as it is.
    """
    root = run_dir / "checkpoints"
    final = root / f"step-{step:07d}"
    partial = root / f".step-{step:07d}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_openclip_directory(model, partial, final=final)
        for name, tensors in beside.items():
            if tensors:
                save_file({key: value.detach().contiguous() for key, value in tensors.items()}, partial / name)
        save_file(_optimizer_tensors(model, optimizer), partial / OPTIMIZER_FILE)
        shutil.copy(run_dir / "recipe.yaml", partial / "recipe.yaml")
        (partial / "state.json").write_text(json.dumps({"step": step, **state}, indent=1), encoding="utf-8")
        _flush_to_disk(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _point(root / "latest", final.name)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {final} cannot be written ({error}): the one before stays; free the disk and start again"
        ) from error
    for old in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return final


def _flush_to_disk(directory: Path) -> None:
    for path in [p for p in directory.rglob("*") if p.is_file()] + [directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _point(link: Path, target: str) -> None:
    """Make ``link`` a symbolic link to ``target`` in one step."""
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(link)


def restore(checkpoint: Path, model: TwoTower, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights and optimiser in place and return the counters (``step`` and what ``save`` was given).

    Raises:
        UserError: a file is missing or does not fit the model.
    """
    with resuming(checkpoint):
        model.clip.load_state_dict(load_file(checkpoint / WEIGHTS_FILE))
        if model.captioner is not None:
            model.captioner.load_state_dict(load_file(checkpoint / CAPTIONER_FILE))
        _restore_optimizer(model, optimizer, load_file(checkpoint / OPTIMIZER_FILE))
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        if missing := [name for name in STATE if name not in state]:
            raise ValueError(f"state.json lacks {', '.join(missing)}")
        return state


def load(checkpoint: Path, name: str, into: Callable[[dict[str, Tensor]], object]) -> None:
    """Give ``into`` the tensors that `save` wrote as the file ``name``.

    Raises:
        UserError: the file is missing or does not fit.
    """
    with resuming(checkpoint):
        into(load_file(checkpoint / name))


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{field}": value.contiguous()
        for parameter, fields in optimizer.state.items()
        for field, value in fields.items()
    }


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, field = key.rsplit("/", 1)
        parameter = parameters[name]
        # Fused AdamW keeps its step counter, too, on the device of the parameter.
        optimizer.state[parameter][field] = value.to(parameter.device)
