"""What is wrong with a run, on one page, from its files alone."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vlp.doctor import evaluation, speed, training
from vlp.doctor.finding import Finding, Verdict
from vlp.doctor.run_files import RunFiles, read

__all__ = ["Diagnosis", "Finding", "examine", "show"]

_ORDER: tuple[Verdict, ...] = ("bad", "look", "ok")
_COLOURS = {"bad": "bold red", "look": "yellow", "ok": "green"}
_WIDTH = 100  # of a pipe, which has none of its own


@dataclass(frozen=True)
class Diagnosis:
    """All findings on a run, what is worst first."""

    run: str
    step: int
    findings: list[Finding]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(directory: str | Path) -> Diagnosis:
    """Look at a run, which may be going on.

    Raises:
        UserError: ``directory`` is no run, or one that has not trained yet.
    """
    run = read(Path(directory))
    found = sorted(_findings(run), key=lambda finding: _ORDER.index(finding.verdict))
    return Diagnosis(str(directory), run.step, found)


def _findings(run: RunFiles) -> list[Finding]:
    maybe = [
        speed.progress(run),
        training.loss(run),
        training.not_finite(run),
        training.spikes(run),
        training.gradient(run),
        training.scale(run),
        training.learning_rate(run),
        training.drift(run),
        evaluation.evaluated(run),
        evaluation.chance(run),
        evaluation.collapsed(run),
        evaluation.overfit(run),
        *evaluation.captions_per_picture(run),
        *evaluation.blind_captions(run),
        evaluation.average(run),
        speed.data(run),
        speed.speed(run),
        speed.memory(run),
        speed.checkpoints(run),
        speed.bad_samples(run),
    ]
    return [finding for finding in maybe if finding is not None]


def show(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print the page: in colours on a terminal, plain on a pipe."""
    console = console or Console()
    counts = ", ".join(f"{sum(f.verdict == verdict for f in diagnosis.findings)} {verdict}" for verdict in _ORDER)
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in diagnosis.findings:
        says = Text(finding.says)
        if finding.do:
            says.append(f"\n-> {finding.do}", style="dim")
        table.add_row(Text(finding.verdict, style=_COLOURS[finding.verdict]), finding.topic, says)
    page = Group(Text(f"{diagnosis.run} at step {diagnosis.step:,}: {counts}"), table)
    if console.is_terminal:
        console.print(page)
        return
    plain = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
    plain.print(page)
    assert isinstance(plain.file, io.StringIO)
    console.file.write("".join(f"{line.rstrip()}\n" for line in plain.file.getvalue().splitlines()))
