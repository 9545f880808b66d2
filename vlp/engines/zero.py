"""Optimiser, gradients and weights in parts (ZeRO 1, 2 and 3): DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vlp import distributed
from vlp.encoders.two_tower import TwoTower
from vlp.engines.base import Engine as Base
from vlp.engines.base import Named, ShardedEngine
from vlp.engines.launch import Launch
from vlp.optim import adamw
from vlp.recipe import Recipe
from vlp.types import UserError

_MOMENTS = ("exp_avg", "exp_avg_sq")
_SCALARS = ("logit_scale", "logit_bias")


class Engine(Base):
    """ZeRO 1 and 2: every process holds all weights, and the moments of its own part of them."""

    optimizer: Any

    def __init__(self, model: TwoTower, recipe: Recipe, launch: Launch, frozen: list[nn.Module]) -> None:
        self.model = model
        self._precision = recipe.train.precision
        self._device = launch.device
        deepspeed = imported()
        for name in _SCALARS:  # DeepSpeed cuts a parameter along its first dimension
            parameter = getattr(model.clip, name)
            if parameter is not None:
                parameter.data = parameter.data.reshape(1)
        model.clip.register_state_dict_post_hook(_without_dimension)
        self._adamw = adamw(model, recipe.train)
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=self._adamw,
            config=_configuration(launch.deepspeed, recipe),
            dist_init_required=False,
        )

    def __call__(self, *arguments: Any) -> dict[str, Tensor]:
        return self._engine(*arguments)

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bf16")

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """ZeRO 2 and 3 average the gradients all the same, as nobody holds all of them."""
        self._engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self._engine.set_gradient_accumulation_boundary(True)

    def step(self, max_norm: float | None) -> Tensor:
        self._engine.step()  # clips as its configuration says, and skips what is not finite
        return torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=self._device)

    def written(self, parameter: nn.Parameter) -> None:
        if parameter.requires_grad:  # AdamW works on a copy, also where precision is the same
            self._set(parameter, parameter.data, None)

    def optimizer_state(self) -> Named:
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self._adamw.state:
            return
        self._link_moments()
        step = next(iter(self._adamw.state.values()))["step"]
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield f"{name}/step", step
                for field in _MOMENTS:
                    value = safe_get_full_optimizer_state(parameter, field)
                    yield f"{name}/{field}", value.reshape(()) if _is_scalar(name) else value

    def load_optimizer(self, state: Mapping[str, Tensor]) -> None:
        step = next((value for key, value in state.items() if key.endswith("/step")), None)
        if step is None:
            return
        for part in self._parts():
            moments = {field: torch.zeros_like(part) for field in _MOMENTS}
            self._adamw.state[part] = {"step": step.to(part.device, copy=True), **moments}
        self._link_moments()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                for field in _MOMENTS:
                    self._set(parameter, state[f"{name}/{field}"].to(self._device), field)

    def _parts(self) -> list[Tensor]:
        """What AdamW sees: this process's part of the weights, a tensor a group."""
        return list(self.optimizer.single_partition_of_fp32_groups)

    def _set(self, parameter: Any, whole: Tensor, field: str | None) -> None:
        """This process's part of AdamW's copy of a parameter, or of one of its moments."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if field is None:
            safe_set_full_fp32_param(parameter, whole)
        else:
            safe_set_full_optimizer_state(parameter, whole, field)

    def _link_moments(self) -> None:
        # DeepSpeed does so after its first step, but for the first group of parameters only (0.19).
        self.optimizer._hp_optimizer_states_linked = False
        self.optimizer._lazy_init_hp_params_optimizer_state()


class Zero3(ShardedEngine, Engine):
    """ZeRO 3: the weights, too, are in parts, and whole only while a module works."""

    def __init__(self, model: TwoTower, recipe: Recipe, launch: Launch, frozen: list[nn.Module]) -> None:
        ShardedEngine.__init__(self, model)
        Engine.__init__(self, model, recipe, launch, frozen)

    def step(self, max_norm: float | None) -> Tensor:
        norm = super().step(max_norm)
        kept = self.optimizer.persistent_parameters
        if kept:  # DeepSpeed (0.19) leaves them in parts after an update that it left out
            kept[0].all_gather(kept)
        return norm

    def parts(self) -> dict[str, Tensor]:
        return {
            name: _without_padding(value) if hasattr(value, "ds_tensor") else value
            for name, value in self.model.state_dict(keep_vars=True).items()
        }

    def weights(self) -> Named:
        import deepspeed

        for name, value in self.model.state_dict(keep_vars=True).items():
            with deepspeed.zero.GatheredParameters([value], enabled=isinstance(value, nn.Parameter)):
                whole = value.detach().clone()
            yield name, whole.reshape(()) if _is_scalar(name) else whole

    def _parts(self) -> list[Tensor]:
        return list(self.optimizer.fp32_partitioned_groups_flat)

    def _set(self, parameter: Any, whole: Tensor, field: str | None) -> None:
        # DeepSpeed's functions for whole values (0.19) fail where the parts are not equal.
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        assert whole.numel() == parameter.ds_numel, "a value that is in parts itself"
        length, rank, world = parameter.ds_tensor.ds_numel, distributed.rank(), distributed.world_size()
        part = nn.functional.pad(whole.flatten(), (0, length * world - whole.numel())).narrow(0, rank * length, length)
        if field is None:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, field)

    def _link_moments(self) -> None:
        """They are found by way of the parts."""


def _without_padding(parameter: Any) -> Tensor:
    """This process's part; what fills it up to the length of the others' is anything."""
    length = parameter.ds_tensor.ds_numel
    filled = min(length, max(0, parameter.ds_numel - distributed.rank() * length))
    return parameter.ds_tensor.detach().narrow(0, 0, filled)


def _without_dimension(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    """Whoever looks at the weights, to save or to average them, sees the scalars as they are elsewhere."""
    for name in _SCALARS:
        value = state.get(prefix + name)
        if value is not None and value.numel() == 1:  # not one of ZeRO 3, whose values are elsewhere
            state[prefix + name] = value.view(())


def _is_scalar(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in _SCALARS


def imported() -> Any:
    """DeepSpeed.

    Raises:
        UserError: it is not installed.
    """
    try:
        import deepspeed
    except ImportError as error:
        raise UserError("DeepSpeed is not installed: pip install 'vlp[deepspeed]', or take the engine fsdp2") from error
    if not torch.cuda.is_available():
        # Compiled at the first use, for two minutes, and no quicker than gloo for a few processes.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _configuration(given: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """``given`` decides what is in parts and where it lies; all that changes what is computed is the recipe's."""
    options = recipe.train
    for section in ("optimizer", "scheduler"):
        if section in given:
            raise UserError(f"deepspeed_config: {section} is the recipe's, in the section train: remove it there")
    sharing = given.get("zero_optimization", {})
    for key in ("stage3_param_persistence_threshold", "stage3_model_persistence_threshold"):
        if sharing.get(key) == 0:
            raise UserError(
                f"deepspeed_config: {key} 0 would cut the logit scale, which every step looks at: remove it"
            )
    if any(sharing.get(f"offload_{what}", {}).get("device") == "nvme" for what in ("optimizer", "param")):
        raise UserError("deepspeed_config: an offload to nvme is not supported: write cpu, or take more processes")
    rows = recipe.rows // distributed.world_size()
    return {
        **given,
        "train_micro_batch_size_per_gpu": rows,
        "train_batch_size": recipe.rows,
        "gradient_accumulation_steps": 1,  # the boundary is set by hand, micro-batches are `vlp.embeddings`' business
        "gradient_clipping": options.clip_norm or 0.0,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "torch_autocast": {
            "enabled": options.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],  # gradients travel in fp32, as under the other engines
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
