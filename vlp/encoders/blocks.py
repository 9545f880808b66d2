"""The repeated layers of the towers: what is sharded, compiled or recomputed one by one."""

from __future__ import annotations

from torch import nn


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of every stack of layers of one kind, outermost stacks only, in the order of the model."""
    found: list[nn.Module] = []
    for child in model.children():
        layers = list(child.children())
        is_stack = isinstance(child, nn.ModuleList | nn.Sequential) and len({type(layer) for layer in layers}) == 1
        found += layers if is_stack and len(layers) > 1 else blocks(child)
    return found
