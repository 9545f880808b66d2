"""What a claim is: one sentence, the arms that are trained for it, and what is expected of their figures.

A claim is a file ``cNN_name.py`` in this folder with a ``CLAIM``. It is written before its runs: the findings say which
way a figure has to move, and by how much. A kind of finding that is missing here is a class with ``name``, ``figure``,
``decisive`` and ``assess`` in the claim's own file.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from intervals import CONTRADICTED, MIN_SEEDS, NOT_SHOWN, SHOWN, Expected, spread, verdict

from data_tools._rewrite_gate import REASONS
from vlp.types import UserError

HERE = Path(__file__).parent
# Five a caption, without a gate: they say the same by construction, and a caption of few words has few other ones.
REWRITES = ("rewrite", "--engine", "scenes", "--number", "5", "--off", *REASONS)


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: overrides of the claim's recipe, its data set, and on how many processes it runs.

    ``sets`` are those that it alone is evaluated on.
    """

    overrides: tuple[str, ...] = ()
    data: str = "plain"
    processes: int = 1
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """What a finished run left: the figures of its last evaluation, and of its probe, and the losses it logged."""

    seconds: float
    figures: Mapping[str, float]
    losses: Mapping[int, float]


Runs = Mapping[str, Mapping[int, Run]]
"""arm -> seed -> run"""


class Finding(Protocol):
    """One statement of a claim that its runs can show or contradict. Only the decisive ones decide on the claim."""

    @property
    def name(self) -> str: ...

    @property
    def figure(self) -> str: ...

    @property
    def decisive(self) -> bool: ...

    def arms(self) -> Sequence[str]:
        """Names of the arms it is about."""

    def assess(self, runs: Runs) -> dict[str, Any]:
        """``values`` (seed -> value), what is ``expected``, mean with ``low`` and ``high``, ``verdict``."""


@dataclass(frozen=True)
class Contrast:
    """The sum of ``weights`` x ``figure`` over the arms, seed by seed: a difference, or a difference of differences.

    ``margin`` is what "same", "not lower" and "not higher" allow.
    """

    name: str
    figure: str
    weights: Mapping[str, float]
    expected: Expected
    margin: float = 0.0
    decisive: bool = True

    def arms(self) -> list[str]:
        return list(self.weights)

    def assess(self, runs: Runs) -> dict[str, Any]:
        by_seed = [
            {seed: run.figures[self.figure] for seed, run in runs.get(arm, {}).items() if self.figure in run.figures}
            for arm in self.weights
        ]
        seeds = sorted(set.intersection(*map(set, by_seed)))
        values = {
            seed: sum(w * arm[seed] for w, arm in zip(self.weights.values(), by_seed, strict=True)) for seed in seeds
        }
        found = spread(list(values.values()))
        said = f"{self.expected} (± {self.margin:g})" if self.margin else self.expected
        return {
            "values": values,
            "expected": said,
            "margin": self.margin,
            **found,
            "verdict": verdict(found, self.expected, self.margin),
        }


@dataclass(frozen=True)
class SameLosses:
    """The largest difference between the losses that two arms logged at the same steps stays within ``bound``.

    A loss that is not a number is within no bound.
    """

    name: str
    pair: tuple[str, str]
    bound: float
    figure: str = "train/loss"
    decisive: bool = True

    def arms(self) -> list[str]:
        return list(self.pair)

    def assess(self, runs: Runs) -> dict[str, Any]:
        one, other = (runs.get(arm, {}) for arm in self.pair)
        values = {}
        for seed in sorted(one.keys() & other.keys()):
            a, b = one[seed].losses, other[seed].losses
            if a.keys() != b.keys():
                raise UserError(f"{self.name}: the arms of seed {seed} logged their losses at different steps")
            if not a:
                raise UserError(
                    f"{self.name}: the arms of seed {seed} logged no loss: let track.every be below the steps"
                )
            differences = [abs(a[step] - b[step]) for step in a]
            values[seed] = math.nan if any(map(math.isnan, differences)) else max(differences)
        within = [value <= self.bound for value in values.values()]
        decided = SHOWN if all(within) and len(within) >= MIN_SEEDS else NOT_SHOWN
        return {
            "values": values,
            "expected": f"at most {self.bound:g}",
            "margin": self.bound,
            **spread(list(values.values())),
            "verdict": decided if all(within) else CONTRADICTED,
        }


@dataclass(frozen=True)
class AtLeast:
    """The ``figure`` of an arm, in the mean over seeds with its interval, is ``bound`` or more."""

    name: str
    arm: str
    figure: str
    bound: float
    decisive: bool = True

    def arms(self) -> Sequence[str]:
        return [self.arm]

    def assess(self, runs: Runs) -> dict[str, Any]:
        of_arm = runs.get(self.arm, {})
        values = {seed: run.figures[self.figure] for seed, run in sorted(of_arm.items())}
        found = spread(list(values.values()))
        verdict = NOT_SHOWN
        if found["num"] >= MIN_SEEDS and found["mean"] is not None:
            verdict = SHOWN if found["low"] >= self.bound else CONTRADICTED if found["high"] < self.bound else NOT_SHOWN
        return {"values": values, "expected": f"at least {self.bound:g}", "margin": 0.0, **found, "verdict": verdict}


@dataclass(frozen=True)
class Claim:
    """A promise of a method and how it is tried.

    Attributes:
        name: as in the list of claims, such as C6.
        title: the method in a few words.
        promise: the claim in one sentence.
        paper: where it comes from.
        shrunk: what is smaller here than there, and why.
        recipe: a file under ``recipes/``.
        data: name -> options of ``vlp data scenes``; an arm trains on the one it names.
            Empty: the recipe names data and sets, as seen from the current folder, and says how they are made.
        layers: name -> a tool of ``vlp data`` that writes it for all its data, with options, such as `REWRITES`.
        sets: evaluation sets, folders under ``eval/`` of the arm's data; ``TASK:FOLDER`` names the task as well.
        arms: name -> arm. All have the seed of a pair: the same initialisation, order of the data and steps.
        findings: what is expected.
        probe: a script of this folder that is run as ``SCRIPT RUN DATA`` after training; it writes RUN/probe.json,
            figures by name.
    """

    name: str
    title: str
    promise: str
    paper: str
    shrunk: str
    recipe: str
    data: Mapping[str, tuple[str, ...]]
    sets: tuple[str, ...]
    arms: Mapping[str, Arm]
    findings: Sequence[Finding] = field(default_factory=list)
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    probe: str | None = None

    def __post_init__(self) -> None:
        for finding in self.findings:
            if unknown := set(finding.arms()) - set(self.arms):
                raise UserError(f"{self.name}: the finding '{finding.name}' is about an unknown arm '{min(unknown)}'")
        for name, arm in self.arms.items():
            if self.data and arm.data not in self.data:
                raise UserError(f"{self.name}: the arm '{name}' names unknown data '{arm.data}'")

    @property
    def recipe_file(self) -> Path:
        return HERE / "recipes" / self.recipe


def load_all() -> dict[str, Claim]:
    """Stem of the file -> claim, in the order of the files."""
    stems = sorted(path.stem for path in HERE.glob("c[0-9][0-9]_*.py"))
    return {stem: importlib.import_module(stem).CLAIM for stem in stems}


def select(claims: Mapping[str, Claim], wanted: Sequence[str]) -> dict[str, Claim]:
    """Those that ``wanted`` names (C6, c06 or the name of the file), all of them where it is empty.

    Raises:
        UserError: there is no such claim.
    """
    if not wanted:
        return dict(claims)
    chosen = set()
    for word in wanted:
        found = [s for s, c in claims.items() if word.lower() in (s, s.partition("_")[0], c.name.lower())]
        if not found:
            raise UserError(f"no claim '{word}': there are {', '.join(claim.name for claim in claims.values())}")
        chosen.update(found)
    return {stem: claim for stem, claim in claims.items() if stem in chosen}
