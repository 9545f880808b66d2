"""The process group of a launch, also of one that torchrun has started again.

torchrun and `accelerate launch` hold the store in which processes find each other, and keep it when they start the
processes again. Those that are quicker than their neighbours then read where these lay before, and fail to connect or
wait for hours (pytorch issue 135712; seen with torch 2.15 and gloo). So each start uses keys of its own.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from vlp.types import UserError

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def join(timeout: timedelta) -> None:
    """Make the process group that the environment describes, before Accelerate does; nothing without a launcher.

    Gloo beside NCCL on GPUs, for small things that must not wait for them.

    Raises:
        UserError: several nodes whose restarts would hang.
    """
    env = os.environ
    if dist.is_initialized() or not all(name in env for name in _LAUNCHED):
        return
    store, start = None, int(env.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        _check_restarts()
        if start:
            launchers = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False, timeout=timeout)
            store = dist.PrefixStore(f"start-{start}", launchers)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        timeout=timeout,
        store=store,
        rank=int(env["RANK"]),
        world_size=int(env["WORLD_SIZE"]),
    )


def _check_restarts() -> None:
    """How often it was started again, each node counts for itself: there is no name for a start that all know."""
    nodes, restarts = (int(os.environ.get(n, "0")) for n in ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"))
    if nodes > 1 and restarts:
        raise UserError(
            "--max_restarts: processes of several nodes that are started again would look for those that are gone: "
            "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on every node (torchrun --rdzv_backend c10d), or leave it out"
        )
