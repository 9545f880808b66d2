"""A MODEL as embeddings know it: what it is called, and a digest that tells it from others."""

from __future__ import annotations

import os

from data_tools import _models
from vlp.encoders import source
from vlp.encoders.two_tower import TwoTower

_PROBE = "A photo of 2 red circles, and a blue-green square!"


def loaded(reference: str, device: str) -> tuple[TwoTower, str]:
    """(model, `identity`) of a MODEL, kept in this process.

    Raises:
        UserError: there is no such MODEL or device.
    """
    return _models.loaded(reference, device, identity)


def identity(model: TwoTower) -> str:
    """16 digits that change with the weights, the pictures that the model wants, and how it reads a text."""
    config = model.openclip_config
    facts = [
        config["preprocess_cfg"],
        bool(config["model_cfg"].get("quick_gelu", False)),
        model.tokenizer([_PROBE]).tolist(),
    ]
    return _models.digest(facts, model.clip.state_dict())


def place_of(reference: str) -> str:
    """A MODEL by a name that holds from any directory and later on: of a run the checkpoint that it stands for.

    Raises:
        UserError: there is no such MODEL.
    """
    described = source.of_reference(reference).described
    if os.path.exists(described):
        return os.path.abspath(described)
    name, colon, file = described.partition(":")
    return f"{name}:{os.path.abspath(file)}" if colon and os.path.isfile(file) else described
