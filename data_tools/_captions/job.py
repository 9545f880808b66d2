"""What a caption layer is asked to be, and the files that cannot become a part of it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import vlp
from data_tools import _models
from vlp.data.layer_files import UNREADABLE, layer_path, read_schema, record_of, refuse_layers_of_others
from vlp.data.shards import LOCAL
from vlp.encoders.two_tower import TwoTower
from vlp.flags import flag
from vlp.generation_options import GenerationOptions
from vlp.types import UserError

TOOL = "vlp caption"
COLUMNS = {"caption": "text"}


@dataclass(frozen=True)
class Job:
    """What captions depend on; small enough to travel to every worker. ``weights``: see `identity`."""

    model: str
    weights: str
    options: GenerationOptions
    batch_size: int = 64
    root: str | None = None
    name: str = "captions"

    def provenance(self) -> dict[str, Any]:
        return {
            "tool": TOOL,
            "version": vlp.__version__,
            "model": self.model,
            "weights": self.weights,
            "options": self.options.resolved(),
        }


def loaded(reference: str) -> tuple[TwoTower, str]:
    """(model, `identity`) of a MODEL, kept in this process.

    Raises:
        UserError: there is no such MODEL.
    """
    return _models.loaded(reference, "auto", identity)


def identity(model: TwoTower) -> str:
    """16 digits that change with the model's values, its heads of attention apart, and with the pictures it wants."""
    parts = model.averaged().items()
    values = {prefix + name: value for prefix, part in parts for name, value in part.state_dict().items()}
    return _models.digest(model.openclip_config["preprocess_cfg"], values)


def refuse_others(paths: Iterable[str], job: Job) -> None:
    """A layer holds captions of one model, written in one way.

    Raises:
        UserError: a file of the layer was written by another tool, by another model or with other options, or none
            can be written there.
    """
    for path in paths:
        file = layer_path(path, job.name, job.root)
        if file.startswith(("http://", "https://")):
            raise UserError(f"cannot write the layer to {file}: name a folder with --root")
        refuse_layers_of_others([path], job.name, job.root, TOOL)
        difference = ""
        with suppress(*UNREADABLE):  # it is not there, or broken and nobody's
            if LOCAL.exists(file, optional=True):
                difference = _difference((record_of(read_schema(file)) or {}).get("provenance") or {}, job)
        if difference:
            raise UserError(f"{file} was written {difference}: choose another --name, or remove that layer")


def _difference(made_by: dict[str, Any], job: Job) -> str:
    """How what wrote a file differs from ``job``; the name of a model and the version of vlp do not count."""
    if made_by.get("weights") != job.weights:
        return f"by other weights ({made_by.get('model')}) than those of {job.model}"
    wanted, there = job.provenance()["options"], made_by.get("options", {})
    different = [name for name in wanted if wanted[name] != there.get(name)]
    changes = (f"{flag(name)} {_shown(there.get(name))}, not {_shown(wanted[name])}" for name in different)
    return f"with {' and '.join(changes)}" if different else ""


def _shown(value: object) -> object:
    return "left out" if value in (None, "") else value
