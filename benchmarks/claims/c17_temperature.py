"""C17: the temperature trades uniformity for tolerance, and the best one lies in between."""

import math

from claim import Arm, Claim, Contrast

TEMPERATURES = (0.02, 0.07, 0.2, 0.5, 1.0)
ARMS = {value: f"temperature {value:g}" for value in TEMPERATURES}
MEAN = sum(map(math.log, TEMPERATURES)) / len(TEMPERATURES)
SQUARES = sum((math.log(value) - MEAN) ** 2 for value in TEMPERATURES)
SLOPE = {ARMS[value]: (math.log(value) - MEAN) / SQUARES for value in TEMPERATURES}
"""Weights of the least-squares slope of a figure over the logarithm of the temperature."""
MIDDLE = {ARMS[0.07]: 0.5, ARMS[0.2]: 0.5}
PROBE = "val/shape/image_probe_accuracy"

CLAIM = Claim(
    name="C17",
    title="temperature",
    promise="Over fixed temperatures the accuracy of a linear probe is an inverted U: the middle (0.07 and 0.2) beats "
    "both ends; and as the temperature falls, features grow more uniform (the uniformity loss falls) and less tolerant "
    "(pictures of one class are less alike).",
    paper="Wang and Liu, Understanding the Behaviour of Contrastive Loss, 2021: best at 0.3 of 0.07 to 1 on CIFAR-10",
    shrunk="picture-text pairs instead of two views of a picture; 8,000 drawn scenes of 32 px, 500 steps of 64; "
    "classes are the eight shapes, on pictures of one object.",
    recipe="scenes.yaml",
    data={"plain": ("--num-train", "8000", "--num-eval", "400")},
    sets=("retrieval", "colour", "shape"),
    arms={ARMS[value]: Arm((f"train.temperature={value:g}",)) for value in TEMPERATURES},
    findings=[
        Contrast("0.07 and 0.2 - 0.02", PROBE, {**MIDDLE, ARMS[0.02]: -1}, "up"),
        Contrast("0.07 and 0.2 - 1", PROBE, {**MIDDLE, ARMS[1.0]: -1}, "up"),
        Contrast("slope over log temperature", "val/retrieval/image_uniformity", SLOPE, "up"),
        Contrast("slope over log temperature", "val/shape/tolerance", SLOPE, "up"),
        Contrast("slope over log temperature", "val/colour/tolerance", SLOPE, "up", decisive=False),
    ],
)
