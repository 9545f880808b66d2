"""Where the parameters of a tower lie between its input and its features, for learning rates that depend on it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import nn

from vlp.encoders.blocks import blocks
from vlp.types import UserError

Tower = Literal["image", "text", "other"]


class Place(NamedTuple):
    """Layer 0 is the stem, 1 to ``layers`` are the `blocks`, ``layers + 1`` is what comes behind them."""

    layer: int
    layers: int

    @property
    def above(self) -> int:
        """Layers from here to what comes behind all of them."""
        return self.layers + 1 - self.layer

    def __str__(self) -> str:
        if self.layer == 0:
            return "stem"
        return "head" if self.layer > self.layers else f"layer {self.layer} of {self.layers}"


def tower_of(parameter: str) -> Tower:
    """``image``, ``text``, or ``other``: logit scale and bias, a captioner, the fusion tower."""
    first, *rest = parameter.removeprefix("clip.").split(".")
    if first == "visual":
        return "image"
    if first in ("logit_scale", "logit_bias", "text_decoder", "captioner", "fusion"):
        return "other"
    return "text" if rest or first in ("positional_embedding", "text_projection", "cls_emb") else "other"


def places(model: nn.Module) -> dict[str, Place]:
    """Of the parameters of both towers, by their names in ``model``; those of ``other`` have none.

    Raises:
        UserError: a tower in which no layers can be told apart.
    """
    names = {module: name for name, module in model.named_modules()}
    layers: dict[Tower, list[str]] = {"image": [], "text": []}
    for block in blocks(model):
        name = f"{names[block]}."
        if tower_of(name) != "other":
            layers[tower_of(name)].append(name)
    found: dict[str, Place] = {}
    for tower, prefixes in layers.items():
        of_tower = [name for name, _ in model.named_parameters() if tower_of(name) == tower]
        if of_tower and not prefixes:
            raise UserError(f"train.layer_decay: the {tower} tower has no layers that can be told apart: remove it")
        found |= {name: Place(layer, len(prefixes)) for name, layer in _layers(of_tower, prefixes).items()}
    return found


def _layers(names: list[str], prefixes: list[str]) -> dict[str, int]:
    """Of each parameter, its layer, as towers register their parts in the order of their forward pass.

    What stands between two layers, as the reductions of convolutional towers do, belongs to the upper one.
    """
    number = {name: i for name in names for i, prefix in enumerate(prefixes, 1) if name.startswith(prefix)}
    found, upper, below = {}, len(prefixes) + 1, 0
    for name in reversed(names):
        found[name] = upper = number.get(name, upper)
    for name in names:
        below = number.get(name, below)
        parts = name.split(".")
        if parts[-1] == "proj" or "text_projection" in parts:  # parameters of the tower itself, registered first
            found[name] = len(prefixes) + 1
        elif below == 0 or "token_embedding" in parts:  # which one of open_clip's towers registers last
            found[name] = 0
    return found
