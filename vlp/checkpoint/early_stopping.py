"""When a run has seen its best: the evaluations of one figure, and how long none was better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from vlp.types import UserError

_LOWER_IS_BETTER = ("loss", "mean_rank", "median_rank")


class EarlyStoppingOptions(BaseModel, frozen=True, extra="forbid"):
    """End a run when a figure of its evaluations has not become better for a while, and keep its best checkpoint."""

    metric: str = Field(
        description="as `metrics.jsonl` names it, such as `val/image_to_text_R@1` or `val/SET/accuracy`"
    )
    patience: int = Field(ge=1, description="evaluations in a row without a better one, after which the run ends")
    goal: Literal["highest", "lowest"] = Field("highest", description="which is better")

    @model_validator(mode="after")
    def _goal_is_meant(self) -> EarlyStoppingOptions:
        if "goal" not in self.model_fields_set and self.metric.endswith(_LOWER_IS_BETTER):
            raise ValueError(f"goal: say which {self.metric} is better, lowest or highest")
        return self


class EarlyStopping:
    """What was seen so far; the same on every process.

    Attributes:
        seen: the last step that was evaluated; 0 before.
        best_step: the first step with the best value; None before.
        best: that value.
        start: the value before the first step.
    """

    def __init__(self, options: EarlyStoppingOptions, state: Mapping[str, Any] | None = None) -> None:
        self.options = options
        state = state or {"seen": 0, "best_step": None, "best": None, "start": None, "waited": 0}
        self.seen: int = state["seen"]
        self.best_step: int | None = state["best_step"]
        self.best: float | None = state["best"]
        self.start: float | None = state["start"]
        self._waited: int = state["waited"]

    @property
    def is_over(self) -> bool:
        return self._waited >= self.options.patience

    def begin(self, metrics: Mapping[str, float]) -> None:
        """Note where the run starts.

        Raises:
            UserError: no evaluation gives the figure.
        """
        self.start = self._value(metrics)

    def see(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether the evaluation of ``step`` is the best so far; seen again, it counts once.

        Raises:
            UserError: it does not give the figure.
        """
        if step <= self.seen:
            return step == self.best_step
        self.seen = step
        value = self._value(metrics)
        if not self._is_better(value):
            self._waited += 1
            return False
        self.best_step, self.best, self._waited = step, value, 0
        return True

    def state(self) -> dict[str, Any]:
        names = ("seen", "best_step", "best", "start")
        return {**{name: getattr(self, name) for name in names}, "waited": self._waited}

    def described(self) -> str:
        """The best, in a sentence."""
        found = "none could be compared" if self.best is None else f"{self.best:.4f} at step {self.best_step}"
        return f"{self.options.goal} {self.options.metric}: {found}, before the run {self.start or 0:.4f}"

    def _value(self, metrics: Mapping[str, float]) -> float:
        if self.options.metric not in metrics:
            raise UserError(
                f"train.early_stopping.metric: no evaluation gives {self.options.metric}; there are "
                f"{', '.join(sorted(metrics))}"
            )
        return metrics[self.options.metric]

    def _is_better(self, value: float) -> bool:
        if math.isnan(value) or self.best is None:
            return not math.isnan(value)
        return value > self.best if self.options.goal == "highest" else value < self.best
