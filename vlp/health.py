"""Whether training is well: losses and gradients that are not finite, loss spikes, weights that drift apart.

Nothing waits for the device at a step: its scalars stay there, and come to the host together when they are read. What
happened, with the keys of the batch, is a row of ``RUN/health.jsonl``.

An update whose gradient is not finite is left out on the device itself (`veto`). The norm of the global gradient alone
decides, because it is the same on every process: a loss that is NaN on one of them makes the mean gradient NaN on all.
The losses differ by process, and to agree on them would be a collective a step. A loss that is not finite while the
gradient is (a term that overflows and is flat there) moves the weights by a finite step, and is found when it is read.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlp import distributed, sharded
from vlp.spikes import Spikes
from vlp.types import UserError

FILE = "health.jsonl"
READ_AFTER = 100  # steps at the most; the keys of all of them are kept until then
IN_A_ROW = 10  # updates left out, one after the other, that are no accident any more
OVERFLOWS_IN_A_ROW = 30  # fp16's scaler halves its scale at each: from 65,536 to below 1e-4


class HealthOptions(BaseModel, frozen=True, extra="forbid"):
    """What a run does about numbers that are not finite."""

    nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="an update whose gradient is not finite is left out; then the run stops, or goes on (skip) unless "
        f"{IN_A_ROW} in a row are",
    )


@dataclass(frozen=True)
class Event:
    """A row of ``health.jsonl``.

    Attributes:
        loss: mean over the processes; None where it is not finite.
        grad_norm: of the global gradient; None where it is not finite.
        ranks: processes whose own loss is not finite, or whose weights differ from those of most.
        keys: of the batch, a list for each process.
        note: what there is to know besides, for people.
    """

    step: int
    kind: Literal["nonfinite", "spike", "drift"]
    loss: float | None = None
    grad_norm: float | None = None
    ranks: tuple[int, ...] = ()
    keys: tuple[tuple[str, ...], ...] = ()
    note: str = ""


def veto(optimizer: torch.optim.Optimizer, grad_norm: Tensor) -> None:
    """Have the next ``step`` of a fused AdamW leave weights, moments and step counter as they are if need be.

    Called before every ``step``, with the norm of its gradient. Nothing is read: the kernel looks at the flag, as it
    does for torch's GradScaler, which sets its own and wins. It works on sharded parameters (DTensor), too.

    Args:
        optimizer: torch's own, fused; others raise an AssertionError in their step.
        grad_norm: of the global gradient, a plain tensor, the same on every process.
    """
    optimizer.found_inf = (~torch.isfinite(grad_norm)).float()  # type: ignore[attr-defined]


@dataclass
class _Step:
    step: int
    keys: Sequence[str]
    figures_2: Tensor  # loss, gradient norm


@dataclass
class Health:
    """Watches a run; every process has one and calls it at the same steps.

    Its history begins anew when a run goes on, so a checkpoint keeps nothing of it.

    Args:
        warmup_steps: of the learning rate; what the loss does there is no spike.
        say: prints a line; of rank zero's, which also writes the rows.
        scaled: whether a gradient scaler (fp16) finds its scale by gradients that are not finite, which are no event
            then, but for very many in a row.
        statistics: `running_statistics` of the model, which the forward pass has changed before an update is left out:
            where the run goes on over such steps, they are taken back with it.
    """

    options: HealthOptions
    run_dir: Path
    warmup_steps: int
    say: Callable[[str], None] = distributed.say
    scaled: bool = False
    statistics: Sequence[Tensor] = ()
    _steps: list[_Step] = field(default_factory=list)
    _in_a_row: int = 0
    _left_out: int = 0
    _drift: float | None = None

    def __post_init__(self) -> None:
        self._spikes = Spikes(self.warmup_steps)
        self._taken_back = self.options.nonfinite == "skip" and len(self.statistics) > 0
        self._good = torch.cat(list(self.statistics)) if self._taken_back else torch.empty(0)

    def step(self, step: int, keys: Sequence[str], loss: Tensor, grad_norm: Tensor) -> None:
        """Take the scalars of an update without looking at them; right after it, before others read the model.

        Args:
            keys: of this process's rows.
            loss: of this process.
            grad_norm: of the global gradient.
        """
        figures_2 = torch.stack([loss.detach().float(), grad_norm.detach().float().to(loss.device)])
        self._steps.append(_Step(step, keys, figures_2))
        if self._taken_back:
            self._good = torch.where(torch.isfinite(grad_norm), torch.cat(list(self.statistics)), self._good)
            torch._foreach_copy_(list(self.statistics), self._good.split([len(part) for part in self.statistics]))
        if len(self._steps) >= READ_AFTER:
            self.read()

    def read(self) -> None:
        """Look at all steps since the last time: one transfer to the host, one small collective, two if something is.

        Raises:
            UserError: on every process, by the policy.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        with torch.no_grad():
            figures_WS2 = distributed.gather_rows(torch.stack([step.figures_2 for step in steps])[None]).cpu()
        events, sentence = [], ""
        for place, step in enumerate(steps):
            event = self._event(step.step, figures_WS2[:, place, 0].tolist(), figures_WS2[:, place, 1].tolist())
            if event is not None:
                events.append((place, event))
            sentence = self._verdict(step.step, event)
            if sentence:
                break
        if events:
            keys_of_ranks = distributed.from_all_ranks([tuple(steps[place].keys) for place, _ in events])
            for (_, event), *keys in zip(events, *keys_of_ranks, strict=True):
                self._record(event, keys)
        if sentence:
            raise UserError(sentence)

    def check(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Refuse to save what is not finite: the gradient was, but the weights diverged with its update.

        Args:
            tensors: by name, the same on every process; of what is sharded each looks at its part.

        Raises:
            UserError: on every process.
        """
        floats = {name: value for name, value in tensors.items() if value.is_floating_point()}
        parts = sharded.locals_of(floats.values())
        flags_T = torch.stack([~torch.isfinite(part.detach()).all() for part in parts]).int()
        distributed.max_over_ranks(flags_T)
        if lost := [name for name, flag in zip(floats, flags_T.tolist(), strict=True) if flag]:
            raise UserError(
                f"train: not finite at step {step}: {_some(lost)}: lower train.lr, lengthen train.warmup or set "
                "train.clip_norm; the last checkpoint stays as it is"
            )

    def compare(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Whether ``weights`` are equal to the bit on all processes; when a checkpoint is saved.

        Args:
            weights: by their names; what is sharded (DTensor) is left out: no other process should have the same.
        """
        replicated = {name: value for name, value in weights.items() if not isinstance(value, DTensor)}
        if distributed.world_size() == 1 or not replicated:
            return
        names, ranks = drift(replicated)
        self._drift = len(ranks) / distributed.world_size()
        if ranks:
            note = f"weights of rank {', '.join(map(str, ranks))} differ from the others' ({_some(names)})"
            self._record(Event(step, "drift", ranks=tuple(ranks), note=note), [])

    def metrics(self) -> dict[str, float]:
        """For a row of the log: updates left out since the last row; once compared, the share of ranks that drifted."""
        left_out, self._left_out = self._left_out, 0
        drifted = {} if self._drift is None else {"train/rank_drift": self._drift}
        return {"train/skipped_updates": float(left_out), **drifted}

    def _event(self, step: int, losses: list[float], grad_norms: list[float]) -> Event | None:
        loss, grad_norm = sum(losses) / len(losses), max(grad_norms)
        vetoed, lost = not all(map(math.isfinite, grad_norms)), not math.isfinite(loss)
        self._left_out += vetoed
        self._in_a_row = self._in_a_row + 1 if vetoed or lost else 0
        if lost or (vetoed and not self.scaled):
            which, value = ("loss", loss) if lost else ("gradient", next(g for g in grad_norms if not math.isfinite(g)))
            ranks = tuple(rank for rank, own in enumerate(losses) if not math.isfinite(own))
            update = "its update was left out" if vetoed else "its update was finite, and made"
            note = f"the {which} is {value:g} at step {step}: {update}"
            norm = None if vetoed else grad_norm
            return Event(step, "nonfinite", None if lost else loss, norm, ranks, note=note)
        usual = self._spikes.usual(step, loss)
        if usual is None:
            return None
        note = f"the loss jumped to {loss:.4g} at step {step}, from a median of {usual:.4g}"
        return Event(step, "spike", loss, None if vetoed else grad_norm, note=note)

    def _verdict(self, step: int, event: Event | None) -> str:
        """Why the run cannot go on; empty if it can."""
        place = self.run_dir / FILE
        cure = "lower train.lr, lengthen train.warmup or set train.clip_norm"
        cure += ", or choose train.precision=bf16" if self.scaled else ""
        most = OVERFLOWS_IN_A_ROW if self.scaled else IN_A_ROW
        if event is not None and event.kind == "nonfinite" and self.options.nonfinite == "stop":
            return (
                f"train: {event.note}; the last checkpoint stays as it is, and {place} has the keys of the batch: "
                f"{cure}, or go on over such batches with train.nonfinite=skip"
            )
        if self._in_a_row >= most:
            return (
                f"train: {most} updates in a row, up to step {step}, had a loss or gradient that is not finite; the "
                f"last checkpoint stays as it is: {cure}"
            )
        return ""

    def _record(self, event: Event, keys: Sequence[Sequence[str]]) -> None:
        if distributed.rank() == 0:
            self.say(f"{event.note}; keys in {self.run_dir / FILE}" if keys else event.note)
            with (self.run_dir / FILE).open("a", encoding="utf-8") as rows:
                rows.write(json.dumps({**asdict(event), "keys": keys}, ensure_ascii=False) + "\n")


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Those of the batch norms that are trained, C each."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    return [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]


def drift(weights: Mapping[str, Tensor]) -> tuple[list[str], list[int]]:
    """Names of the tensors that are not the same to the bit on all processes, and the ranks that differ from most.

    Of two halves, that of rank zero, which saves, is right. A tensor's fingerprint is the sum of its bits read as
    integers; a collective compares all of them, eight bytes a tensor and process. Every process gets the same answer.
    """
    with torch.no_grad():
        prints_1T = torch.stack([_fingerprint(value) for value in weights.values()])[None]
        rows = [tuple(row) for row in distributed.gather_rows(prints_1T).tolist()]
    right, _ = Counter(rows).most_common(1)[0]  # of equally frequent ones the first
    ranks = [rank for rank, row in enumerate(rows) if row != right]
    names = [name for place, name in enumerate(weights) if len({row[place] for row in rows}) > 1]
    return names, ranks


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _fingerprint(value: Tensor) -> Tensor:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return value.view(integers[value.element_size()]).sum(dtype=torch.int64)
