"""Low-rank adaptation: weights stay, a product of two narrow matrices is learned beside each (LoRA, arXiv:2106.09685).

By torch's parametrisation, W + alpha / rank * B A whenever the weight is read, not by modules in the place of others as
in peft: towers read weights of their parts directly, as open_clip's attention does with its fused and its output
projection, which peft (0.21) would leave without a gradient, and the names and classes of modules stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vlp.encoders import packing
from vlp.encoders.blocks import blocks
from vlp.encoders.depth import tower_of
from vlp.types import UserError

Towers = Annotated[tuple[Literal["image", "text"], ...], Field(min_length=1)]


class LoraOptions(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """All weights of the towers stay as they are; only what is added to them learns, and the logit scale."""

    rank: int = Field(8, ge=1, description="width of the two matrices")
    alpha: float = Field(16.0, gt=0, description="what is added is alpha / rank times their product")
    towers: Towers = Field(("image", "text"), description="those that learn")
    targets: tuple[str, ...] | None = Field(
        None,
        description="of the towers' layers, only weights whose name has one of these parts, such as `attn` or "
        "`attn.in_proj_weight`; without it, all matrices and convolutions wider than the rank",
    )


class LowRank(nn.Module):
    """What is added to one weight; nothing at first, as B is 0. A has the shape rank x inputs, B outputs x rank."""

    def __init__(self, weight: Tensor, options: LoraOptions) -> None:
        super().__init__()
        self.scale = options.alpha / options.rank
        self.A = nn.Parameter(weight.new_empty(options.rank, weight[0].numel()))
        self.B = nn.Parameter(weight.new_zeros(len(weight), options.rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        device = weight.device.type
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            return added(weight, self.A, self.B, self.scale)


def added(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return weight + scale * (b @ a).view_as(weight)


def add(clip: Any, options: LoraOptions) -> None:
    """Freeze an open_clip model but for its logit scale and bias, and let ``options`` learn beside it.

    Raises:
        UserError: targets that are not there, or narrower than the rank.
    """
    packing.prepare(getattr(clip, "text", clip))  # which would replace the class of a parametrised module later
    clip.requires_grad_(False)
    for parameter in (clip.logit_scale, clip.logit_bias):
        if parameter is not None:
            parameter.requires_grad_(True)
    for module, name in _targets(clip, options):
        low_rank = LowRank(getattr(module, name), options)
        parametrize.register_parametrization(module, name, low_rank, unsafe=True)  # spares a pass through it


def adapted(clip: nn.Module) -> dict[str, LowRank]:
    """What is learned beside which weight of ``clip``, by its name in a model without LoRA."""
    found = {}
    for path, module in clip.named_modules():
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():
                if isinstance(chain[0], LowRank):
                    found[f"{path}.{name}"] = chain[0]
    return found


def described(clip: nn.Module, options: LoraOptions) -> str:
    """One line of what learns."""
    beside = adapted(clip)
    counts = [f"{sum(tower_of(name) == tower for name in beside)} of the {tower} tower" for tower in options.towers]
    learned = sum(low_rank.A.numel() + low_rank.B.numel() for low_rank in beside.values())
    left_out = sum(1 for _ in _matrices(clip, options.towers)) - len(beside)
    return (
        f"rank {options.rank} beside {len(beside)} weights ({', '.join(counts)}; {left_out} others of their layers "
        f"stay): {learned:,} parameters, {16 * learned / 2**20:.1f} MiB with gradients and Adam's moments"
    )


def split(values: Mapping[str, Tensor], clip: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The ``state_dict`` of a model with LoRA as that of one without, all added up, and A and B by themselves."""
    merged = dict(values)
    beside: dict[str, Tensor] = {}
    for name, low_rank in adapted(clip).items():
        original, a, b = (merged.pop(key) for key in _stored(name))
        merged[name] = added(original, a, b, low_rank.scale)
        beside |= {f"{name}/A": a, f"{name}/B": b}
    return merged, beside


@torch.no_grad()
def load(clip: nn.Module, merged: Mapping[str, Tensor], beside: Mapping[str, Tensor]) -> list[str]:
    """Take over what `split` gave; the weights that stay are those of ``clip``.

    Returns:
        Names of those that are not the ones of ``merged``.

    Raises:
        KeyError: something is missing.
        RuntimeError: something has another shape.
    """
    names = adapted(clip)
    # Copies on the host, where ``merged`` is and was added up, however the model is computed.
    frozen = {
        name: value.detach().to("cpu", copy=True) for name, value in clip.named_parameters() if not value.requires_grad
    }
    clip.load_state_dict({name: merged[name] for name in merged.keys() - names.keys()}, strict=False)
    changed = [name for name, value in frozen.items() if name in merged and not torch.equal(value, merged[name])]
    for name, low_rank in names.items():
        low_rank.A.copy_(beside[f"{name}/A"])
        low_rank.B.copy_(beside[f"{name}/B"])
        original, a, b = frozen[_stored(name)[0]], beside[f"{name}/A"], beside[f"{name}/B"]
        now, before = added(original, a, b, low_rank.scale), merged[name]
        if now.shape != before.shape or (now - before).abs().max() > 1e-5 * before.abs().max():  # rounding
            changed.append(name)
    return sorted(changed)


def _stored(name: str) -> tuple[str, str, str]:
    """Names of the weight, A and B in a ``state_dict``, as torch's parametrisation has them."""
    path, _, weight = name.rpartition(".")
    prefix = f"{path}.parametrizations.{weight}"
    return f"{prefix}.original", f"{prefix}.0.A", f"{prefix}.0.B"


def _targets(clip: nn.Module, options: LoraOptions) -> list[tuple[nn.Module, str]]:
    """The modules and the names of their weights."""
    there = list(_matrices(clip, options.towers))
    wide = [path for path, module, name in there if _width(getattr(module, name)) > options.rank]
    if options.targets is None and not wide:
        raise UserError(f"model.lora.rank {options.rank}: no matrix of these towers is wider: lower it")
    for target in options.targets or ():
        of_target = [path for path, _, _ in there if _has(path, target)]
        if not of_target:
            known = sorted({".".join(path.rsplit(".", 3)[1:]) for path, _, _ in there})
            raise UserError(f"model.lora.targets: no weight is named '{target}'; there are {', '.join(known)}")
        if narrow := [path for path in of_target if path not in wide]:
            raise UserError(f"model.lora.rank {options.rank}: {narrow[0]} is no wider than that: lower it")
    wanted = options.targets
    return [
        (module, name)
        for path, module, name in there
        if path in wide and (wanted is None or any(_has(path, target) for target in wanted))
    ]


def _matrices(clip: nn.Module, towers: tuple[str, ...]) -> Iterator[tuple[str, nn.Module, str]]:
    """Path, module and name of the weights in the towers' layers that multiply what they see."""
    names = {module: name for name, module in clip.named_modules()}
    for block in blocks(clip):
        if tower_of(f"{names[block]}.") not in towers:
            continue
        for module in block.modules():
            if isinstance(module, nn.MultiheadAttention) and module._qkv_same_embed_dim:
                yield f"{names[module]}.in_proj_weight", module, "in_proj_weight"
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
                yield f"{names[module]}.weight", module, "weight"


def _width(weight: Tensor) -> int:
    return min(len(weight), weight[0].numel())


def _has(path: str, target: str) -> bool:
    return f".{target}." in f".{path}."
