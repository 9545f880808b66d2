"""The repeated layers of the towers: what is sharded or recomputed one by one."""

from __future__ import annotations

from torch import nn


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of every stack of layers of one kind, in the order of the model.

    Of a stack of stages, as of convolutional towers, the layers of the stages.
    """
    found: list[nn.Module] = []
    for child in model.children():
        inner = blocks(child)
        is_layer = _is_stack(model) and _share(inner, child) < 0.5
        found += [child] if is_layer else inner
    return found


def _is_stack(module: nn.Module) -> bool:
    """Whether it holds layers of one kind, each made of several parts."""
    layers = list(module.children())
    same = isinstance(module, nn.ModuleList | nn.Sequential) and len({type(layer) for layer in layers}) == 1
    return same and all(any(layer.children()) for layer in layers)


def _share(parts: list[nn.Module], whole: nn.Module) -> float:
    """Of the weights of ``whole``, those in its ``parts``."""
    of_whole = sum(parameter.numel() for parameter in whole.parameters())
    return sum(p.numel() for part in parts for p in part.parameters()) / max(1, of_whole)
