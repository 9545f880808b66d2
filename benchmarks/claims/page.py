"""From the runs of a claim to what is published: the record (JSON) and its part of README.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from claim import Claim, Finding, Runs
from intervals import CONTRADICTED, NOT_SHOWN, SHOWN, spread, together

from vlp.types import UserError

START, END = "<!-- results: written by run.py -->", "<!-- end of results -->"


def record(
    claim: Claim,
    runs: Runs,
    notes: Mapping[str, Mapping[int, Mapping[str, Any]]],
    failed: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """Every figure of every run, what it was run with (``notes``: arm -> seed), and what the findings make of them.

    A finding about an arm of which a seed ``failed`` (arm -> seeds) is not shown: those that went well are a choice.
    """
    findings = [_assessed(finding, runs, failed) for finding in claim.findings]
    used = {finding.figure for finding in claim.findings}
    return {
        **{key: getattr(claim, key) for key in ("name", "title", "promise", "paper", "shrunk", "recipe")},
        "data": {name: " ".join(options) for name, options in claim.data.items()},
        **({"layers": {n: " ".join(o) for n, o in claim.layers.items()}} if claim.layers else {}),
        "arms": {name: asdict(arm) for name, arm in claim.arms.items()},
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count()},
        "verdict": together(findings),
        "findings": findings,
        "spreads": {
            arm: {
                figure: spread([run.figures[figure] for run in by_seed.values() if figure in run.figures])
                for figure in sorted(used)
                if any(figure in run.figures for run in by_seed.values())
            }
            for arm, by_seed in runs.items()
        },
        "runs": [
            {"arm": arm, "seed": seed, **notes[arm][seed], "figures": dict(run.figures), "losses": dict(run.losses)}
            for arm, by_seed in runs.items()
            for seed, run in sorted(by_seed.items())
        ],
    }


def _assessed(finding: Finding, runs: Runs, failed: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    found = {"name": finding.name, "figure": finding.figure, "decisive": finding.decisive, **finding.assess(runs)}
    missing = [f"{arm}, seed {seed}" for arm in finding.arms() for seed in failed.get(arm, ())]
    return {**found, "verdict": NOT_SHOWN, "failed": missing} if missing else found


def missing_figures(claim: Claim, runs: Runs) -> list[str]:
    """Figures that the findings ask for and no run has."""
    asked = {f.figure for f in claim.findings if not f.figure.startswith("train/")}
    had = {figure for by_seed in runs.values() for run in by_seed.values() for figure in run.figures}
    return sorted(asked - had) if runs else []


def markdown(records: Mapping[str, Mapping[str, Any]]) -> str:
    """All records (by the stem of the claim's file): a table of claims, then a section each."""
    lines = ["| claim | method | verdict | decisive findings | runs |", "|---|---|---|---|---:|"]
    for one in records.values():
        decisive = [finding for finding in one["findings"] if finding["decisive"]]
        said = f"{_count(decisive, SHOWN)} of {len(decisive)} shown"
        if contradicted := _count(decisive, CONTRADICTED):
            said += f", {contradicted} contradicted"
        lines.append(
            _row(
                [
                    f"[{one['name']}](#{_anchor(one)})",
                    one["title"],
                    f"**{one['verdict']}**",
                    said,
                    len(one["runs"]),
                ]
            )
        )
    for stem, one in records.items():
        lines += ["", *_section(stem, one)]
    return "\n".join(lines)


def _count(findings: Sequence[Mapping[str, Any]], wanted: str) -> int:
    return sum(finding["verdict"] == wanted for finding in findings)


def _heading(one: Mapping[str, Any]) -> str:
    return f"{one['name']}: {one['title']}"


def _anchor(one: Mapping[str, Any]) -> str:
    kept = "".join(c for c in _heading(one).lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")


def _section(stem: str, one: Mapping[str, Any]) -> list[str]:
    lines = [f"### {_heading(one)}", "", f"{one['promise']} ({one['paper']})", "", f"Shrunk: {one['shrunk']}", ""]
    lines += ["| finding | figure | expected | seeds | value [95 %] | verdict |", "|---|---|---|---:|---|---|"]
    for finding in one["findings"]:
        name = finding["name"] if finding["decisive"] else f"{finding['name']} (beside the claim)"
        cells = [name, f"`{finding['figure']}`", finding["expected"], finding["num"], interval(finding)]
        lines.append(_row([*cells, verdict(finding)]))
    figures = sorted({figure for spreads in one["spreads"].values() for figure in spreads})
    if figures:
        seconds = {arm: [run["seconds"] for run in one["runs"] if run["arm"] == arm] for arm in one["spreads"]}
        lines += [
            "",
            _row(["mean ± half of the 95 % interval", *(f"`{figure}`" for figure in figures), "seconds a run"]),
        ]
        lines.append(_row(["---", *["---:"] * (len(figures) + 1)]))
        for arm, spreads in one["spreads"].items():
            cells = [_mean(spreads.get(figure)) for figure in figures]
            lines.append(_row([arm, *cells, f"{sum(seconds[arm]) / len(seconds[arm]):.0f}"]))
    if one["runs"]:
        lines += ["", f"![{one['name']}](plots/{stem}.png)"]
    return lines


def verdict(finding: Mapping[str, Any]) -> str:
    """With the runs that failed."""
    failed = finding.get("failed")
    return f"{finding['verdict']} (failed: {'; '.join(failed)})" if failed else str(finding["verdict"])


def interval(finding: Mapping[str, Any]) -> str:
    if finding["mean"] is None:
        return "not finite" if finding["num"] else "no pairs yet"
    if finding["low"] is None:
        return f"{finding['mean']:+.3g}"
    return f"{finding['mean']:+.3g} [{finding['low']:+.3g}, {finding['high']:+.3g}]"


def _mean(found: Mapping[str, Any] | None) -> str:
    if not found or found["mean"] is None:
        return ""
    if found["low"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f} ± {found['high'] - found['mean']:.3f}"


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def with_results(page: str, text: str) -> str:
    """``page`` with ``text`` between the marks."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UserError(f"README.md has lost its marks '{START}' and '{END}': put them back")
    return f"{before}{start}\n\n{text}\n\n{end}{after}"
