"""How well the tokens of a run's image tower tell what lies at their patch: if anything, of which colour and shape.

    python benchmarks/claims/patch_probe.py RUN DATA

Linear probes on tokens of scenes of two objects that the run has not seen, drawn by the options of DATA (``vlp data
scenes``), one token a picture: every other time of a patch with an object in its middle, else of an empty one.
``probe/patch_colour`` is the accuracy in telling the eight colours and nothing (who knows the picture but not the place
gets half of them right), ``probe/patch_shape`` in telling the eight shapes where there is one. Writes RUN/probe.json.
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
from data_tools._scenes_world import COLOURS, SHAPES
from vlp.encoders.openclip import load
from vlp.evaluation.probe import logistic_accuracy

PICTURES = 4000
BATCH = 250
EMPTY, UNCLEAR = -1, -2


def objects_at_patches(objects: list[dict[str, Any]], image_size: int, grid: int) -> np.ndarray:
    """For each patch, row by row: the number of the object at its centre, EMPTY, or UNCLEAR near an edge."""
    side = image_size / grid
    found = np.full(grid * grid, EMPTY)
    for place in range(grid * grid):
        x, y = (place % grid + 0.5) * side, (place // grid + 0.5) * side
        for number, thing in enumerate(objects):
            distance = np.hypot(thing["x"] - x, thing["y"] - y) - thing["diameter"] / 2
            if distance < 0:
                found[place] = number
                break
            if distance < side / np.sqrt(2):
                found[place] = UNCLEAR
    return found


def choose(found: np.ndarray, number: int) -> int | None:
    """The patch that picture ``number`` is asked about; None where it has none of the kind in turn."""
    places = np.flatnonzero(found >= 0 if number % 2 else found == EMPTY)
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
    tokens, colours, shapes = [], [], []
    for number, things in enumerate(objects):
        found = objects_at_patches(things, image_size, grid)
        place = choose(found, number)
        if place is not None:
            thing = things[found[place]] if found[place] >= 0 else None
            tokens.append(tokens_NPD[number, place])
            colours.append(COLOURS.index(thing["colour"]) if thing else len(COLOURS))
            shapes.append(SHAPES.index(thing["shape"]) if thing else EMPTY)
    tokens_ND, shapes_N = torch.stack(tokens), torch.tensor(shapes)
    figures = {
        "probe/patch_colour": logistic_accuracy(tokens_ND, torch.tensor(colours)),
        "probe/patch_shape": logistic_accuracy(tokens_ND[shapes_N != EMPTY], shapes_N[shapes_N != EMPTY]),
    }
    (run_dir / "probe.json").write_text(json.dumps(figures) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
