"""What an objective is, how a recipe's list of them is read, and how they add up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, Field, ValidationError

from vlp import resolve
from vlp.options import explain
from vlp.types import Embeddings, Loss, UserError

_IMAGE_VIEWS = "image_views:"


class Objective(BaseModel, ABC, frozen=True, extra="forbid"):
    """One loss. Its fields are its options in the recipe; subclasses are named ``Objective`` and live in a file each.

    Class attributes:
        needs: columns and capabilities it uses, checked against the recipe before any weight is loaded.
            ``image_views:K`` makes the loader deliver K crops of each picture.
        couples_batch: True if the loss compares samples with each other (it then sees the global batch at once),
            False if it is a mean over samples.
    """

    needs: ClassVar[frozenset[str]]
    couples_batch: ClassVar[bool]

    name: str
    weight: float = Field(1.0, gt=0, description="factor of this objective in the sum")

    @abstractmethod
    def loss(self, embeddings: Embeddings) -> Loss:
        """Unweighted loss of this process's rows; its mean over processes is the loss of the global batch."""

    def initial_logits(self) -> dict[str, float]:
        """Start values that the paper gives ``logit_scale`` and ``logit_bias`` (as parameters, before exp)."""
        return {}


def parse(entry: dict[str, Any]) -> Objective:
    """The objective that one entry ``{name: ..., weight: ..., ...}`` of a recipe describes."""
    if not isinstance(entry, dict) or "name" not in entry:
        raise UserError(f"each entry needs a name, such as {{name: infonce}}; got {entry!r}")
    module = resolve.module("vlp.objectives", str(entry["name"]), "objective")
    if not hasattr(module, "Objective"):
        raise UserError(f"objective '{entry['name']}': the module has no class Objective (see CONTRIBUTING.md)")
    try:
        return module.Objective.model_validate(entry)
    except ValidationError as error:
        raise explain(error, module.Objective, f"objective '{entry['name']}'") from None


def check_needs(objectives: Sequence[Objective], provided: frozenset[str]) -> None:
    """Refuse, before anything is loaded, a recipe that cannot give what an objective uses."""
    for objective in objectives:
        missing = sorted(need for need in objective.needs - provided if not need.startswith(_IMAGE_VIEWS))
        if missing:
            raise UserError(
                f"objective '{objective.name}' needs {', '.join(missing)}, which this recipe does not provide "
                f"(it provides {', '.join(sorted(provided))})"
            )


def image_views(objectives: Sequence[Objective]) -> int:
    """Crops of each picture that the loader has to deliver: as many as the most demanding objective compares."""
    needs = (need for objective in objectives for need in objective.needs)
    return max([1, *(int(need.removeprefix(_IMAGE_VIEWS)) for need in needs if need.startswith(_IMAGE_VIEWS))])


def combined_loss(objectives: Sequence[Objective], embeddings: Embeddings) -> Loss:
    """Weighted sum of the objectives; parts are logged unweighted under their own names."""
    losses = [objective.loss(embeddings) for objective in objectives]
    total = sum(o.weight * loss.total for o, loss in zip(objectives, losses, strict=True))
    parts = {name: value.detach() for loss in losses for name, value in loss.parts.items()}
    return Loss(total, parts)  # type: ignore[arg-type]
