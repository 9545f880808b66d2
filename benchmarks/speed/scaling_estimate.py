"""How long a training step would take on many GPUs: arithmetic from sizes, bytes of collectives and assumptions.

Nothing here was measured on a GPU. Sizes of models (weights, FLOPs, activations, kernels) and the bytes of collectives
come from `scaling.py`, which measures them; what a machine does with them is assumed in `Machine`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FLOAT = 4  # bytes of features and gradients on their way
KEPT_LOGITS = 1 << 26  # up to so many vlp keeps the exponentials for backward, and needs three products, not four
STATE = 16  # bytes a weight with its gradient and AdamW's two moments, fp32


@dataclass(frozen=True)
class Machine:
    """Nodes of eight H100 SXM. Rates are a second; shares say how much of a data sheet's figure is taken to be reached.

    Attributes:
        mfu: share of ``peak`` (bf16, dense) that the towers reach.
        fp32_peak, loss_share: of the matrix products of vlp's loss, which are fp32; of open_clip's, in bf16, the same
            share of ``peak``.
        within, across: bytes that each GPU sends in a ring among those of a node (NVLink 4: 450e9), and over nodes
            with a 400 Gb/s card a GPU, through which each byte of a node goes once (8 x 50e9).
        hidden: share of the time of a pass behind which collectives can run.
        launch: of a kernel, on the host; a step cannot be shorter than all of them.
        hop: that a ring needs for each further node before its first byte arrives.
    """

    peak: float = 989e12
    mfu: float = 0.4
    fp32_peak: float = 67e12
    loss_share: float = 0.6
    memory: float = 80e9
    spared_memory: float = 8e9
    memory_bandwidth: float = 0.8 * 3.35e12
    per_node: int = 8
    within: float = 0.8 * 450e9
    across: float = 0.8 * 400e9
    hidden: float = 0.8
    launch: float = 6e-6
    start: float = 20e-6
    hop: float = 5e-6

    def sending(self, sent: float, gpus: int, tree: bool = False) -> float:
        """Seconds of a collective in which each GPU sends so many bytes; a tree needs the logarithm of the hops."""
        nodes = max(1, gpus // self.per_node)
        hops = math.log2(nodes) if tree else nodes - 1
        return self.start + self.hop * hops + sent / (self.within if nodes == 1 else self.across)


@dataclass(frozen=True)
class Model:
    """Sizes of two towers; ``image`` and ``text`` are FLOPs of a forward pass of one, ``saved`` bytes for backward."""

    name: str
    weights: int
    width: int
    image: float
    text: float
    launches: int
    saved: float
    layers: int

    def rows_that_fit(self, machine: Machine) -> int:
        """Of a pass with all its activations."""
        return int((machine.memory - machine.spared_memory - STATE * self.weights) / self.saved)


@dataclass(frozen=True)
class Step:
    """Seconds of a step, by what they go to; ``passes`` more than one where activations of all rows do not fit."""

    towers: float
    loss: float
    optimiser: float
    features: float
    gradients: float
    rows: int
    passes: int

    @property
    def seconds(self) -> float:
        return self.towers + self.loss + self.optimiser + self.features + self.gradients

    @property
    def samples_per_second(self) -> float:
        return self.rows / self.seconds


def step(model: Model, machine: Machine, gpus: int, rows: int, engine: str = "ddp", open_clip: bool = False) -> Step:
    """The estimate of a step of ``rows`` of each GPU.

    Args:
        open_clip: its loss instead (local loss, gathered with gradient): features of both towers, twelve products of
            b x B x D. The towers are taken to be as fast as vlp's.
    """
    passes = max(1, math.ceil(rows / model.rows_that_fit(machine)))
    arithmetic = rows * 3 * (model.image + model.text) / (machine.peak * machine.mfu)
    towers = max(arithmetic, passes * model.launches * machine.launch)
    forward = towers / 3
    if passes > 1:  # cached gradients: one more forward pass
        towers += forward
    image_pass = forward * model.image / (model.image + model.text) if passes == 1 else 0.0
    return Step(
        towers=towers,
        loss=_loss(model, machine, gpus, rows, open_clip, passes),
        optimiser=(28 * model.weights / (1 if engine == "ddp" else gpus)) / machine.memory_bandwidth,
        features=_features(model, machine, gpus, rows, open_clip, passes, image_pass),
        gradients=_gradients(model, machine, gpus, engine, passes, forward / passes, 2 * forward / passes),
        rows=rows * gpus,
        passes=passes,
    )


def _loss(model: Model, machine: Machine, gpus: int, rows: int, open_clip: bool, passes: int) -> float:
    """Products of b x B x D, and the memory that the logits pass through: some ten times each matrix of them."""
    logits = rows * rows * gpus
    traffic = logits * FLOAT * 10 / machine.memory_bandwidth
    if open_clip:  # evaluated anew for each accumulated micro-batch
        return passes * (12 * logits * model.width / (machine.peak * machine.loss_share) + 2 * traffic)
    products = 6 if logits <= KEPT_LOGITS else 8
    return products * logits * model.width / (machine.fp32_peak * machine.loss_share) + traffic


def _features(
    model: Model, machine: Machine, gpus: int, rows: int, open_clip: bool, passes: int, image_pass: float
) -> float:
    """What is left of the time of gathering features and scattering their gradients."""
    gathering = machine.sending(text_bytes(model.width, gpus, rows), gpus)
    if open_clip:
        return 4 * passes * gathering  # both features, there and back, with nothing beside it
    floats = machine.sending(2 * rows * gpus * FLOAT, gpus, tree=True) + machine.sending(rows * gpus * FLOAT, gpus)
    return max(0.0, gathering - machine.hidden * image_pass) + floats + gathering


def _gradients(
    model: Model, machine: Machine, gpus: int, engine: str, passes: int, forward: float, backward: float
) -> float:
    """What is left of the time of averaging gradients, and of gathering weights where they are in parts.

    ``forward`` and ``backward`` are the seconds of one pass.
    """
    part = model.weights * (gpus - 1) / gpus
    if engine == "fsdp2":  # weights travel as bf16, for every pass, layer by layer, gradients as fp32
        layers = model.layers + 1
        gather = layers * machine.sending(2 * part / layers, gpus)
        scatter = layers * machine.sending(FLOAT * part / layers, gpus)
        forwards = 1 if passes == 1 else 2 * passes
        return (
            forwards * max(0.0, gather - machine.hidden * forward)
            + (passes - 1) * max(0.0, gather - machine.hidden * backward)
            + max(0.0, gather + scatter - machine.hidden * backward)
        )
    last_bucket = machine.sending(2 * 25e6, gpus, tree=True)
    averaging = machine.sending(2 * FLOAT * part, gpus, tree=True)
    left = max(last_bucket, averaging - machine.hidden * backward)
    return left + (machine.sending(FLOAT * part, gpus) if engine == "zero1" else 0.0)


def text_bytes(width: int, gpus: int, rows: int) -> float:
    """That each of so many processes sends to gather the features of one tower, in a ring; as many to scatter back."""
    return (gpus - 1) * rows * width * FLOAT


def gradient_bytes(weights: int, gpus: int, engine: str) -> float:
    """That each sends for gradients and weights a step: over NCCL in bf16 precision, as the estimate takes them."""
    part = weights * (gpus - 1) / gpus
    return {"ddp": 2 * FLOAT * part, "zero1": 3 * FLOAT * part, "fsdp2": (2 * 2 + FLOAT) * part}[engine]
