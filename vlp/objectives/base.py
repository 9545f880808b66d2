"""What an objective is, how a recipe's list of them is read, and how they add up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, Field, ValidationError, model_validator
from torch import Tensor
from typing_extensions import Self

from vlp import resolve
from vlp.durations import Schedule, Scheduled, Span, settled, smallest
from vlp.features import Embeddings
from vlp.options import explain
from vlp.types import Loss, UserError

_IMAGE_VIEWS, _TEXT_VIEWS, _HARD_TEXTS = "image_views:", "text_views:", "hard_texts:"


class Objective(BaseModel, ABC, frozen=True, extra="forbid", allow_inf_nan=False):
    """One loss. Its fields are its options in the recipe; subclasses are named ``Objective`` and live in a file each.

    A field of the type ``Scheduled`` takes a number or a `Schedule`; ``loss`` sees the number of the step.

    Class attributes:
        couples_batch: True if the loss compares samples with each other (it then sees the global batch at once),
            False if it is a mean over samples.
        shared_parts: those of its loss's parts whose names objectives of other names have too.
    """

    couples_batch: ClassVar[bool]
    shared_parts: ClassVar[frozenset[str]] = frozenset()

    name: str
    weight: Scheduled = Field(
        1.0, description="factor in the sum: a number, or a schedule `{start, end, after, over}`; 0 leaves it out"
    )

    @model_validator(mode="after")
    def _weighs(self) -> Self:
        if smallest(self.weight) < 0 or self.weight == 0:
            raise ValueError("weight: must be greater than 0, or a schedule that never goes below it")
        return self

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """Columns and capabilities it uses as it is configured, checked before any weight is loaded.

        ``image``, ``text``: the features of pictures and captions. ``image_views:K``, ``text_views:K``: of K crops of
        each picture, of K of its captions. ``hard_texts:K``: of K captions that are nearly right but false of the
        picture. ``image_tokens``, ``text_tokens``: of patches, of words. ``momentum`` and
        ``momentum.image_tokens``, ``momentum.text_tokens``: the same of the twin, with the field ``momentum``, its
        decay. ``queue``: the twin's earlier features, with the field ``queue_size``. ``teacher``: features of a frozen
        model, with the field ``teacher``. ``picture_ids``, ``caption_ids``: which rows show or say the same.
        ``captions``: what its captioner makes of them, with the field ``label_smoothing``. ``logit_bias``, ``fusion``,
        ``masked_text``: of the model.
        """

    @abstractmethod
    def loss(self, embeddings: Embeddings) -> Loss:
        """Unweighted loss of this process's rows; its mean over processes is the loss of the global batch."""

    def initial_logits(self) -> dict[str, float]:
        """Start values that the paper gives ``logit_scale`` and ``logit_bias`` (as parameters, before exp)."""
        return {}

    def notes(self) -> list[str]:
        """What the log says about it at the start, a line each."""
        return []

    def at(self, span: Span, step: int) -> Self:
        """The same objective with every schedule replaced by its value in the update after ``step`` finished ones."""
        moving = self._schedules()
        if not moving:
            return self
        return self.model_copy(
            update={field: value.at(span, step, self._key(field)) for field, value in moving.items()}
        )

    def check_schedules(self, span: Span) -> None:
        """Refuse, before the first step, what `at` could not settle or what never moves."""
        for field, schedule in self._schedules().items():
            schedule.check(span, self._key(field))

    def _schedules(self) -> dict[str, Schedule]:
        values = {field: getattr(self, field) for field in type(self).model_fields}
        return {field: value for field, value in values.items() if isinstance(value, Schedule)}

    def _key(self, field: str) -> str:
        return f"objectives.{self.name}.{field}"


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


_CURES = {
    "logit_bias": "set model.init_logit_bias",
    "hard_texts": "set data.hard_captions, such as [{source: layer.negatives.negatives}] of vlp data negatives",
    "captions": "add model.captioner, such as {layers: 2}, or choose a CoCa",
    "fusion": "add model.fusion, such as {layers: 2}",
    "masked_text": "add model.fusion, such as {layers: 2}",
}


def needs(objectives: Sequence[Objective]) -> frozenset[str]:
    """All that any of the objectives uses."""
    return frozenset().union(*(objective.needs for objective in objectives))


def check_needs(objectives: Sequence[Objective], provided: frozenset[str]) -> None:
    """Refuse, before anything is loaded, a recipe that cannot give what an objective uses."""
    for objective in objectives:
        for missing in sorted({_kind(need) for need in objective.needs} - provided):
            if missing:
                cure = _CURES.get(missing, f"known needs: {', '.join(sorted(provided))}")
                raise UserError(
                    f"objective '{objective.name}' needs {missing}, which this recipe does not give: {cure}"
                )


def _kind(need: str) -> str:
    """What the data must have; empty for views, of which any data have as many as are drawn."""
    return "" if need.startswith((_IMAGE_VIEWS, _TEXT_VIEWS)) else need.partition(":")[0]


def image_views(objectives: Sequence[Objective]) -> int:
    """Crops of each picture that the model sees: as many as the most demanding objective compares."""
    return max(1, _most(objectives, _IMAGE_VIEWS))


def text_views(objectives: Sequence[Objective]) -> int:
    """Captions of each picture that the model sees."""
    return max(1, _most(objectives, _TEXT_VIEWS))


def hard_texts(objectives: Sequence[Objective]) -> int:
    """Hard captions of each picture that the model sees; 0 where no objective asks."""
    return _most(objectives, _HARD_TEXTS)


def _most(objectives: Sequence[Objective], prefix: str) -> int:
    return max([0, *(int(need.removeprefix(prefix)) for need in needs(objectives) if need.startswith(prefix))])


def shared_field(objectives: Sequence[Objective], need: str, field: str) -> Any:
    """The value of ``field`` on which the objectives that declare ``need`` agree; None if none does.

    Raises:
        UserError: they do not agree: there is one twin, one queue, one teacher.
    """
    found = {getattr(objective, field): objective.name for objective in objectives if need in objective.needs}
    if len(found) > 1:
        (first, name), (second, other) = list(found.items())[:2]
        raise UserError(f"objectives: {name} has {field} {first}, {other} has {second}: give both the same")
    return next(iter(found), None)


def combined_loss(objectives: Sequence[Objective], embeddings: Embeddings, couples_batch: bool | None = None) -> Loss:
    """Weighted sum of the objectives; parts are unweighted, under the names that `log_name` gives them.

    An objective of weight 0 is left out.

    Args:
        objectives: all those of the recipe.
        couples_batch: only those whose ``couples_batch`` is this; None: all.
    """
    total = torch.zeros((), device=embeddings.image_VND.device)
    parts: dict[str, Tensor] = {}
    for place, objective in enumerate(objectives):
        if objective.weight == 0 or couples_batch not in (None, objective.couples_batch):
            continue
        loss = objective.loss(embeddings)
        total = total + settled(objective.weight) * loss.total
        found = {log_name(objectives, place, part): value.detach() for part, value in loss.parts.items()}
        if twice := sorted(found.keys() & parts.keys()):
            raise UserError(
                f"objectives: {objective.name} and an earlier one both have a part {twice[0]}: rename it, or put it in "
                "shared_parts of both classes"
            )
        parts |= found
    return Loss(total, parts)


def loss_of(objectives: Sequence[Objective], couples_batch: bool) -> Callable[[Embeddings], Loss] | None:
    """`combined_loss` of those whose ``couples_batch`` is this; None if there are none."""
    if all(objective.couples_batch != couples_batch for objective in objectives):
        return None
    return lambda embeddings: combined_loss(objectives, embeddings, couples_batch)


def log_name(objectives: Sequence[Objective], place: int, figure: str) -> str:
    """Under what a ``figure`` of the objective at ``place`` of a recipe is logged: at every step the same.

    It keeps its own name, unless an earlier objective of the recipe has it too: then it is ``FIGURE.PLACE``.
    """
    own = objectives[place]
    taken = any(
        earlier.name == own.name or figure in own.shared_parts & earlier.shared_parts for earlier in objectives[:place]
    )
    return f"{figure}.{place}" if taken else figure


def moving_weights(given: Sequence[Objective], now: Sequence[Objective]) -> dict[str, Tensor]:
    """Under ``weight/NAME``, those of the objectives ``now`` whose weights have schedules in the recipe's ``given``."""
    moving = [place for place, objective in enumerate(given) if isinstance(objective.weight, Schedule)]
    return {f"weight/{log_name(now, n, now[n].name)}": torch.tensor(settled(now[n].weight)) for n in moving}
