"""The engine under a run: Accelerate, checked against what was asked for, and the signals that stop it."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from vlp import distributed
from vlp.encoders.batch_norm import is_local
from vlp.recipe import TrainOptions
from vlp.types import UserError


def accelerator_for(options: TrainOptions) -> Accelerator:
    """Accelerate on the devices that are there, in exactly the world that the launcher asked for.

    Raises:
        UserError: another number of processes than asked for, a batch that they cannot share, a precision that the
            device does not have.
    """
    distributed.check_launch()
    if options.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.precision: fp16 needs a CUDA device; use bf16 or fp32 here")
    precision = "no" if options.precision == "fp32" else options.precision
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.accelerator.is_available())
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if distributed.world_size() != asked:
        raise UserError(
            f"the launcher asked for {asked} processes but {distributed.world_size()} work together: "
            "start with torchrun --nproc_per_node N -m vlp train ..."
        )
    if options.global_batch_size % asked:
        raise UserError(
            f"train.global_batch_size: {options.global_batch_size} cannot be divided among {asked} processes"
        )
    return accelerator


def check_batch_statistics(model: nn.Module, cached: bool) -> None:
    """Refuse batch norms in training whose statistics would be those of a part of the batch.

    Over processes they are synchronised where their kind is known; cached micro-batches have no remedy.
    """
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules())
    if cached and batch_norm:
        raise UserError(
            "train.micro_batch_size: this model has batch norms, whose statistics would be those of a micro-batch: "
            "leave it out, or choose a tower with layer norms"
        )
    if distributed.world_size() > 1 and any(map(is_local, model.modules())):
        raise UserError(
            "model: this tower has batch norms of a kind that cannot be synchronised on the CPU: "
            "use one process or GPUs, or choose a tower with layer norms"
        )


class Signals:
    """Ctrl-C and SIGTERM ask the loop to save and stop; a second one stops at once."""

    def __init__(self) -> None:
        self.received = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = True
        distributed.say("saving; a second signal stops at once")
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
