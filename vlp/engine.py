"""The engine under a run: Accelerate, checked against what was asked for, the signals that stop it, its directory."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Create ``run_dir`` and keep other runs out of it: ranks whose torchrun was killed, for one, train on.

    The lock is one of POSIX: it ends with the process, however that ends, and its forks do not inherit it.

    Raises:
        UserError: another process trains there.
    """
    file, occupant = None, ""
    if distributed.rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):  # others come from file systems without locks
                file.seek(0)
                occupant = file.read().strip() or "another process"
    try:
        if found := distributed.from_all_ranks(occupant)[0]:
            raise UserError(f"{run_dir} is being trained in by {found}: stop that first, or choose another run_dir")
        yield
    finally:
        if file is not None:
            file.close()
