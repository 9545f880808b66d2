"""The image tower of any MODEL, and what tells it from others."""

from __future__ import annotations

from data_tools import _models
from vlp.encoders.two_tower import TwoTower


def loaded(reference: str, device: str) -> tuple[TwoTower, str]:
    """(model, `identity`) of a MODEL, kept in this process.

    Raises:
        UserError: there is no such MODEL or device.
    """
    return _models.loaded(reference, device, identity)


def identity(model: TwoTower) -> str:
    """16 digits that change with the values of the image tower and with the pictures that it wants."""
    return _models.digest(model.openclip_config["preprocess_cfg"], model.clip.visual.state_dict())
