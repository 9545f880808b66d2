"""Bytes that each of several processes sends for a loss with backward, as their sockets count them."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor

from vlp.features import Embeddings
from vlp.objectives import base

_BYTES_SENT = 200  # offset of tcpi_bytes_sent in Linux's struct tcp_info, a 64-bit number there since 4.19
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # image ND, text ND, log of the scale


def ours(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    embedded = Embeddings.of(image, text, log_scale.exp())
    return base.parse({"name": "infonce"}).loss(embedded).total


def open_clip(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    loss = ClipLoss(True, True, rank=dist.get_rank(), world_size=dist.get_world_size())
    return loss(F.normalize(image, dim=1), F.normalize(text, dim=1), log_scale.exp())


def sent(world: int, rows: int, width: int) -> dict[str, float]:
    """Bytes per process and step of `infonce` and of ClipLoss(local_loss=True, gather_with_grad=True).

    fp32, gloo. ``ratio`` is ours / theirs, ``gradient_difference`` the relative one of all features' and the scale's.

    Args:
        world: processes.
        rows: pairs of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, rows, width, folder)
        multiprocessing.start_processes(_rank, arguments, world, start_method="fork")
        results = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
    found: dict[str, float] = {}
    for name in ("vlp", "open_clip"):
        found[name] = sum(result[name]["bytes"] for result in results) / world
    found["ratio"] = found["vlp"] / found["open_clip"]
    ours_joined, theirs_joined = (
        torch.cat(
            [
                *(result[name]["features"].flatten() for result in results),
                torch.stack([result[name]["scale"] for result in results]).sum(
                    0, keepdim=True
                ),  # each has a part of it
            ]
        )
        for name in ("vlp", "open_clip")
    )
    found["gradient_difference"] = ((ours_joined - theirs_joined).norm() / theirs_joined.norm()).item()
    return found


def can_count() -> bool:
    """Whether this system's sockets count their bytes where they are looked for: Linux's do."""
    if not hasattr(socket, "TCP_INFO"):
        return False
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(bytes(1000))
        return _bytes_of(client) == 1000


def _rank(rank: int, world: int, rows: int, width: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", world), rank=rank, world_size=world)
    warnings.simplefilter("ignore", FutureWarning)  # of the gather that open_clip calls
    generator = torch.Generator().manual_seed(rank)
    image, text = (torch.randn(rows, width, generator=generator) for _ in range(2))
    result = {}
    for name, loss in (("vlp", ours), ("open_clip", open_clip)):
        step = partial(_gradients, loss, image, text + 0.3 * image)
        features, scale = step()
        before = _bytes_sent()
        step()
        result[name] = {"bytes": _bytes_sent() - before, "features": features, "scale": scale}
    torch.save(result, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _gradients(loss: Loss, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    leaves = [value.clone().requires_grad_() for value in (image, text, torch.tensor(3.0))]
    loss(*leaves).backward()
    of_image, of_text, of_scale = (torch.zeros(()) if leaf.grad is None else leaf.grad for leaf in leaves)
    return torch.cat([of_image, of_text], dim=1), of_scale


def _bytes_sent() -> int:
    """By all TCP sockets of this process so far."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as copy:
                    total += _bytes_of(copy)
        except OSError:  # closed by now, or no TCP
            continue
    return total


def _bytes_of(connection: socket.socket) -> int:
    info: Any = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("=Q", info, _BYTES_SENT)[0])
