"""What the launcher started, checked against what was asked for: processes, device, engine."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from vlp import distributed, rendezvous
from vlp.recipe import Recipe
from vlp.types import UserError
from vlp.watchdog import process_group_timeout


@dataclass(frozen=True)
class Launch:
    """The processes of a run and the engine that they work under.

    Attributes:
        engine: ddp, fsdp2, zero1, zero2 or zero3.
        deepspeed: the configuration that Accelerate or the recipe's engine asks for.
        reshard_after_forward: of FSDP2.
    """

    accelerator: Accelerator
    engine: str
    deepspeed: dict[str, Any] = field(default_factory=dict)
    reshard_after_forward: bool = True

    @property
    def device(self) -> torch.device:
        return self.accelerator.device


def start(recipe: Recipe) -> Launch:
    """The process group on the devices that are there, in exactly the world that the launcher asked for.

    Raises:
        UserError: another number of processes than asked for, a batch that they cannot share, a precision or an engine
            that they do not have.
    """
    distributed.check_launch()
    options = recipe.train
    settings = _settings(options.engine)
    if options.precision == "fp16":
        if not torch.cuda.is_available():
            raise UserError("train.precision: fp16 needs a CUDA device; use bf16 or fp32 here")
        if settings["engine"] != "ddp":
            raise UserError(f"train.precision: fp16 does not go with {settings['engine']}: use bf16, or the engine ddp")
    if (asked_for := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) not in ("no", options.precision):
        raise UserError(
            f"mixed_precision: accelerate launch was configured for {asked_for}, but train.precision is "
            f"{options.precision}, which decides: write mixed_precision: no, or the same in the recipe"
        )
    ddp = settings["engine"] == "ddp"
    rendezvous.join(process_group_timeout(options.hang_timeout))
    accelerator = Accelerator(
        mixed_precision=options.precision if ddp and options.precision != "fp32" else "no",
        cpu=not torch.accelerator.is_available(),
    )
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
    if not ddp and asked == 1:
        raise UserError(
            f"{settings['engine']} shares a model among processes, but there is one: start more with torchrun or "
            "accelerate launch, or take the engine ddp"
        )
    return Launch(accelerator, **settings)


def _settings(asked: str | None) -> dict[str, Any]:
    """Engine and its settings, from Accelerate's environment or from ``asked``, the recipe's ``train.engine``.

    The variables that make Accelerate shard by itself are taken away: on the CPU it would ignore them in part.
    """
    fsdp = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    deepspeed = os.environ.pop("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    found: dict[str, Any] = {}
    if fsdp:
        found = _of_fsdp()
    elif deepspeed:
        found = _of_deepspeed()
    if found and asked not in (None, found["engine"]):
        raise UserError(
            f"train.engine is {asked}, but accelerate launch was configured for {found['engine']}: "
            "take one of them away"
        )
    if found:
        return found
    if asked is not None and asked.startswith("zero"):
        return {"engine": asked, "deepspeed": {"zero_optimization": {"stage": int(asked[-1])}}}
    return {"engine": asked or "ddp"}


def _of_fsdp() -> dict[str, Any]:
    from accelerate.utils import FullyShardedDataParallelPlugin

    if os.environ.get("FSDP_VERSION") != "2":
        raise UserError("fsdp_config: fsdp_version 1 is not supported: set fsdp_version: 2")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise UserError(
            "fsdp_config: fsdp_offload_params is not supported: offload the optimiser by DeepSpeed "
            "(offload_optimizer_device: cpu), or take more processes"
        )
    plugin = FullyShardedDataParallelPlugin()
    return {"engine": "fsdp2", "reshard_after_forward": bool(plugin.reshard_after_forward)}


def _of_deepspeed() -> dict[str, Any]:
    from accelerate.utils import DeepSpeedPlugin

    config = DeepSpeedPlugin().deepspeed_config
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage not in (1, 2, 3):
        raise UserError(f"deepspeed_config: zero_stage {stage} shards nothing: write 1, 2 or 3, or launch without")
    return {"engine": f"zero{stage}", "deepspeed": config}
