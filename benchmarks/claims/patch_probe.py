"""How well the tokens of a run's image tower tell what lies at their patch: nothing, or an object of which colour.

    python benchmarks/claims/patch_probe.py RUN DATA

A linear probe on tokens of scenes of two objects that the run has not seen, drawn by the options of DATA (``vlp
data scenes``), one token a picture: every other time of a patch with an object in its middle, else of an empty one. Who
knows the whole picture but not the place gets half of them right. Writes RUN/probe.json.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_tools._scenes_options import ScenesOptions
from data_tools._scenes_training import training_sample
from data_tools._scenes_world import COLOURS
from vlp.encoders.openclip import load
from vlp.evaluation.probe import logistic_accuracy

PICTURES = 2000
BATCH = 250
EMPTY, UNCLEAR = len(COLOURS), -1


def patch_labels(objects: list[dict[str, Any]], image_size: int, grid: int) -> np.ndarray:
    """For each patch, row by row: the number of the colour at its centre, EMPTY, or UNCLEAR near an edge."""
    side = image_size / grid
    labels = np.full(grid * grid, EMPTY)
    for place in range(grid * grid):
        x, y = (place % grid + 0.5) * side, (place // grid + 0.5) * side
        for thing in objects:
            distance = np.hypot(thing["x"] - x, thing["y"] - y) - thing["diameter"] / 2
            if distance < 0:
                labels[place] = COLOURS.index(thing["colour"])
                break
            if distance < side / np.sqrt(2):
                labels[place] = UNCLEAR
    return labels


def choose(labels: np.ndarray, number: int) -> int | None:
    """The patch that picture ``number`` is asked about; None where it has none of the kind in turn."""
    wanted = (labels >= 0) & (labels < EMPTY) if number % 2 else labels == EMPTY
    places = np.flatnonzero(wanted)
    return int(Random(number).choice(places)) if len(places) else None


def unseen(data: Path) -> tuple[Tensor, list[list[dict[str, Any]]], int]:
    """uint8 pictures NCHW from beyond the training set, the objects of each, and their size in pixels."""
    options = json.loads((data / "scenes.json").read_text(encoding="utf-8"))["options"]
    lists = {key: tuple(value) for key, value in options.items() if isinstance(value, list)}
    scenes = ScenesOptions(out=data, **{**options, **lists, "objects": "2"})
    world = scenes.world()
    drawn = [training_sample(scenes, world, scenes.num_train + number) for number in range(PICTURES)]
    pixels = [np.array(Image.open(io.BytesIO(image)).convert("RGB")) for image, _, _ in drawn]
    images_NCHW = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return images_NCHW, [factors["objects"] for _, _, factors in drawn], scenes.image_size


def main() -> None:
    run_dir, data = map(Path, sys.argv[1:])
    images_NCHW, objects, image_size = unseen(data)
    model = load(str(run_dir))
    with torch.inference_mode():
        tokens_NPD = torch.cat([model.encode_image_tokens(images)[1] for images in images_NCHW.split(BATCH)])
    grid = round(tokens_NPD.shape[1] ** 0.5)
    features, labels = [], []
    for number, things in enumerate(objects):
        labels_P = patch_labels(things, image_size, grid)
        place = choose(labels_P, number)
        if place is not None:
            features.append(tokens_NPD[number, place])
            labels.append(int(labels_P[place]))
    accuracy = logistic_accuracy(torch.stack(features), torch.tensor(labels))
    (run_dir / "probe.json").write_text(json.dumps({"probe/patch_accuracy": accuracy}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
