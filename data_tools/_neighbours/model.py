"""The image tower of any MODEL, loaded once in a process, and what tells it from others."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
from functools import lru_cache

import torch

from data_tools._language_models.weights import device_of
from vlp.encoders import openclip
from vlp.encoders.two_tower import TwoTower

NUM_DECODERS = 8
"""Threads that read and decode for one process, where its model or its shards are elsewhere."""


@lru_cache(maxsize=1)
def loaded(reference: str, device: str) -> tuple[TwoTower, str]:
    """(model, `identity`) of a MODEL.

    Raises:
        UserError: there is no such MODEL or device.
    """
    model = openclip.load(reference)
    return model.to(_device_here(device)), identity(model)


def identity(model: TwoTower) -> str:
    """16 digits that change with the values of the image tower and with the pictures that it wants."""
    digest = hashlib.blake2b(
        json.dumps(model.openclip_config["preprocess_cfg"], sort_keys=True).encode(), digest_size=8
    )
    for name, value in sorted(model.clip.visual.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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
    return max(torch.accelerator.device_count(), (os.cpu_count() or 1) // NUM_DECODERS)
