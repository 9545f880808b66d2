"""A MODEL in the processes that work on shards: loaded once in each, on a device of its own, told from others."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from data_tools._language_models.weights import device_of
from vlp.data.store import is_remote
from vlp.encoders import openclip
from vlp.encoders.two_tower import TwoTower

_DECODERS = 8  # threads that read and decode for one process, where its model or its shards are elsewhere


@lru_cache(maxsize=1)
def loaded(reference: str, device: str, identity: Callable[[TwoTower], str]) -> tuple[TwoTower, str]:
    """(model, its identity) of a MODEL.

    Raises:
        UserError: there is no such MODEL or device.
    """
    model = openclip.load(reference)
    return model.to(_device_here(device)), identity(model)


def digest(config: Any, values: Mapping[str, Tensor]) -> str:
    """16 digits that change with any of the values, and with a configuration that JSON can hold."""
    found = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=8)
    for name, value in sorted(values.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _device_here(name: str) -> torch.device:
    """Processes of `map_shards` take the GPUs in turn."""
    device = device_of(name)
    if name != "auto" or device.type != "cuda":
        return device
    number = re.search(r"\d+$", multiprocessing.current_process().name)
    return torch.device("cuda", int(number.group() if number else 0) % torch.cuda.device_count())


def num_processes(device: str) -> int | None:
    """Processes that fill this machine; None for one a core, fewer where they share GPUs and decode in threads."""
    if device_of(device).type == "cpu":
        return None
    return max(torch.accelerator.device_count(), (os.cpu_count() or 1) // _DECODERS)


def num_decoders(model: TwoTower, shard_path: str) -> int:
    """Threads that read and decode for one process."""
    here = model.device.type == "cpu" and not is_remote(shard_path)  # then the processes fill the cores
    return 1 if here else _DECODERS


@contextmanager
def few_threads(model: TwoTower, number: int = 1) -> Iterator[None]:
    """On the CPU so many a process; with one, results do not depend on how many processes share the machine."""
    before = torch.get_num_threads()
    try:
        if model.device.type == "cpu":
            torch.set_num_threads(number)
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
