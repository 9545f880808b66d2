"""One self-contained page of a directory of results: models beside each other, set by set; no model is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vlp.evaluation import identity
from vlp.evaluation.answers import Arrays
from vlp.evaluation.directory import ResultsDirectory
from vlp.evaluation.paired import Difference, difference
from vlp.evaluation.report import radar, versus
from vlp.evaluation.report.questions import questions
from vlp.evaluation.report.results import NO_RESULT, SAME, short_names
from vlp.evaluation.report.scores import Row, Score, is_figure, side_by_side
from vlp.evaluation.report.summary import COUNTS, TASK_NAMES
from vlp.evaluation.report.templates import save, template
from vlp.evaluation.report.values import format_value
from vlp.evaluation.results import main_metrics, title
from vlp.evaluation.run import EvaluateOptions, find_task
from vlp.evaluation.suites import base as suites
from vlp.flags import checked
from vlp.types import UserError

OTHERWISE = (
    "These scores are not of the same files, or not of the same options (made_from of the results), so no model is "
    "marked as the best: evaluate the models again by one command."
)


@dataclass(frozen=True)
class ComparedSet:
    """A set with what each model has of it: its result, ``{}`` where there is none, and its answers."""

    name: str
    task: str
    contents: list[Mapping[str, Any]]
    answers: list[Arrays]

    @property
    def first(self) -> Mapping[str, Any]:
        return next(content for content in self.contents if content)

    @property
    def is_alike(self) -> bool:
        """Whether all models answered the same questions, as far as results say."""
        return len({_asked(content) for content in self.contents if content}) == 1

    def difference(self, metric: str, first: int, second: int) -> Difference | None:
        """Of two models on the same questions; None where the answers kept are not all that the metric is made of."""
        if _asked(self.contents[first]) != _asked(self.contents[second]):
            return None
        values = [self.contents[model].get("metrics", {}).get(metric) for model in (first, second)]
        found = difference(metric, self.answers[first], self.answers[second])
        if found is None or not all(map(is_figure, values)):
            return None
        return found if abs(found.value - (values[0] - values[1])) < 1e-6 else None

    def label(self, metric: str) -> str:
        return str((self.first.get("labels") or {}).get(metric, metric)).replace("->", "→").replace("_", " ")


@dataclass(frozen=True)
class Table:
    """Rows with a score a model, and sentences about them."""

    name: str
    facts: list[str]
    rows: list[Row]
    others: list[Row]
    notes: list[str]


@dataclass(frozen=True)
class Gallery:
    """Of one set: model against model, and what none gets right."""

    name: str
    pairs: list[versus.Pair]
    failures: list[versus.Failures]


def is_directory_of_results(path: Path) -> bool:
    """Whether ``path`` is what ``vlp eval --output-dir`` writes, and no run."""
    is_run = any((path / name).exists() for name in ("recipe.yaml", "metrics.jsonl", "checkpoints"))
    return path.is_dir() and not is_run and bool(ResultsDirectory(path).read())


def write_comparison(directory: str | Path, output: str | Path | None = None) -> Path:
    """Write the page of a directory of ``vlp eval --output-dir`` (default ``DIR/report.html``) and return its path.

    Raises:
        UserError: there are no results, or ``output`` is a directory.
    """
    path = Path(output) if output is not None else Path(directory) / "report.html"
    return save(render(ResultsDirectory(directory)), path)


def render(directory: ResultsDirectory) -> str:
    found = directory.read()
    if not found:
        raise UserError(f"{directory.path} has no results: vlp eval MODEL --on DIR --output-dir writes some")
    models = sorted({(content["model"], content["pretrained"]) for content in found})
    names = _names(models)
    sets = _sets(directory, found, models)
    galleries, missing = _galleries(sets)
    groups = _group_tables(found, models)
    tables = [_table(one) for one in sets]
    return template("comparison.html.j2").render(
        name=directory.path.resolve().name,
        names=names,
        models=[_about_model(name, model, found) for name, model in zip(names, models, strict=True)],
        percent=partial(format_value, unit="percent"),
        tables=tables,
        groups=groups,
        radar=_radar(groups, tables),
        galleries=galleries,
        missing=missing,
        number=len(sets),
    )


def _names(models: Sequence[tuple[str, str]]) -> list[str]:
    """Short, and different from each other."""
    whole = [title(*model) for model in models]
    short = short_names([Path(name) for name in whole])
    return short if len(set(short)) == len(short) else whole


def _sets(
    directory: ResultsDirectory, found: Sequence[dict[str, Any]], models: Sequence[tuple[str, str]]
) -> list[ComparedSet]:
    """Sets by name, language and kind; a result of other questions than the first one's stands by itself."""
    sets: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for content in found:
        key = (content["name"], *(content.get(name) for name in SAME))
        sets.setdefault(key, [{} for _ in models])[models.index((content["model"], content["pretrained"]))] = content
    return [
        ComparedSet(
            key[0], key[1], contents, [directory.answers(content["file"]) if content else {} for content in contents]
        )
        for key, contents in sets.items()
    ]


def _about_model(name: str, model: tuple[str, str], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = [content for content in found if (content["model"], content["pretrained"]) == model]
    forms = {_preprocess(content["preprocess"]) for content in own if content.get("preprocess")}
    return {"name": name, "whole": title(*model), "pictures": " or ".join(sorted(forms)), "sets": len(own)}


def _preprocess(form: Mapping[str, Any]) -> str:
    mean, std = ("/".join(f"{value:.3g}" for value in form.get(name, ())) for name in ("mean", "std"))
    size = "x".join(map(str, form.get("size", ())))
    return f"{size}, {form.get('interpolation')}, {form.get('resize_mode')}, mean {mean}, std {std}"


def _asked(content: Mapping[str, Any]) -> str:
    """What a result says of the set and the options that it was made from."""
    made_from = content.get("made_from") or {}
    return json.dumps([made_from.get(name) for name in ("set", "options")], sort_keys=True)


def _table(one: ComparedSet) -> Table:
    main = main_metrics(one.task, one.first["metrics"])
    every = dict.fromkeys(metric for content in one.contents for metric in content.get("metrics", {}))
    facts = [TASK_NAMES.get(one.task, one.task)]
    facts += [f"{one.first[key]:,} {noun}" for key, noun in COUNTS if isinstance(one.first.get(key), int)]
    notes = dict.fromkeys(note for content in one.contents for note in content.get("notes", []))
    rows = [_row(one, metric) for metric in main]
    if one.is_alike:
        rows = [_marked(row, one, metric) for row, metric in zip(rows, main, strict=True)]
    else:
        notes[OTHERWISE] = None
    others = [row for metric in every if metric not in main for row in [_row(one, metric)] if any(row.scores)]
    return Table(one.name, facts, rows, others, list(notes))


def _row(one: ComparedSet, metric: str) -> Row:
    known = [{**NO_RESULT, **content} for content in one.contents]
    scores = side_by_side([(content["metrics"].get(metric), content["intervals"].get(metric)) for content in known])
    scores = [score and replace(score, against="") for score in scores]
    chance = next((content["chance"][metric] for content in known if is_figure(content["chance"].get(metric))), None)
    return Row(one.label(metric), metric, scores, chance)


def _marked(row: Row, one: ComparedSet, metric: str) -> Row:
    """The row with its best score marked, if that is clearly above every other one."""
    known = [place for place, score in enumerate(row.scores) if score]
    if len(known) < 2:
        return row
    values = {place: score.value for place, score in enumerate(row.scores) if score}
    best = max(known, key=lambda place: values[place])
    if not all(_is_above(row, one, metric, best, other) for other in known if other != best):
        return row
    scores = [replace(score, best=place == best) if score else None for place, score in enumerate(row.scores)]
    return replace(row, scores=scores)


def _is_above(row: Row, one: ComparedSet, metric: str, first: int, second: int) -> bool:
    """By the difference on the same questions; where answers were not kept, by intervals that do not overlap."""
    between = one.difference(metric, first, second)
    if between is not None:
        return between.interval[0] > 0
    limits = [score.interval if score else None for score in (row.scores[first], row.scores[second])]
    return limits[0] is not None and limits[1] is not None and limits[0][0] > limits[1][1]


def _group_tables(found: Sequence[Mapping[str, Any]], models: Sequence[tuple[str, str]]) -> list[Table]:
    """The means of the suites that results belong to, over the sets that all models have which have some."""
    tables = []
    for name in sorted({suite for content in found for suite in content.get("suites", [])} & set(suites.names())):
        suite = suites.suite(name)
        scores = []
        for model in models:
            own = [content for content in found if (content["model"], content["pretrained"]) == model]
            own.sort(key=lambda content: name in content.get("suites", []))  # of two of a set the suite's own counts
            scores.append(suite.scores({content["dataset"]: content["metrics"] for content in own}))
        common = set.intersection(*(set(one) for one in scores if one)) if any(scores) else set()
        of_model = [suite.means({entry: one[entry] for entry in common if entry in one}) for one in scores]
        known = suite.scores({content["dataset"]: content.get("chance") or {} for content in found})
        chances = suite.means({entry: chance for entry, chance in known.items() if entry in common})
        rows = [_mean_row([means[place] for means in of_model], chance) for place, chance in enumerate(chances)]
        number = len(suite.groups)
        shown, average = ([row for row in part if any(row.scores)] for part in (rows[:number], rows[number:]))
        if shown:
            tables.append(Table(name, [], shown, average, []))
    return tables


def _mean_row(means: Sequence[suites.Mean], chance: suites.Mean) -> Row:
    most = max(means, key=lambda mean: mean.present)
    scores = [None if mean.value is None else Score(mean.value) for mean in means]
    return Row(most.label, "", scores, chance.value if chance.present == most.present else None)


def _radar(groups: Sequence[Table], tables: Sequence[Table]) -> Markup:
    """Over the groups where there are some, else over the sets; empty where these are too few or too many."""
    rows = [(row.label, row) for table in groups[:1] for row in table.rows]
    if len(rows) < radar.FEWEST:
        rows = [(table.name, table.rows[0]) for table in tables if table.rows]
    if not radar.FEWEST <= len(rows) <= radar.MOST:
        return Markup()
    models = range(len(rows[0][1].scores))
    scores = [[score.value if (score := row.scores[model]) else None for _, row in rows] for model in models]
    return radar.radar("scores by group", [name for name, _ in rows], scores, [row.chance or 0.0 for _, row in rows])


def _galleries(sets: Sequence[ComparedSet]) -> tuple[list[Gallery], list[str]]:
    """What can be shown, and sentences about the sets that are not there any more."""
    found, missing = [], []
    for one in sets:
        if not any(one.answers):
            continue
        try:
            found.append(_gallery(one))
        except (UserError, OSError) as error:
            missing.append(f"The pictures of {one.name} cannot be shown: {error}.")
    return found, missing


def _gallery(one: ComparedSet) -> Gallery:
    """
    Raises:
        UserError: the set is not there any more, or has changed.
    """
    entry = one.first.get("set") or one.name
    made_from = one.first.get("made_from") or {}
    task = find_task(entry, checked(EvaluateOptions, {"sets": [entry], **(made_from.get("options") or {})}))
    if made_from.get("set", "") not in ("", identity.of_set(task)):
        raise UserError(f"{entry} has changed since it was evaluated: vlp eval evaluates it anew")
    same = [_asked(content) == _asked(one.first) for content in one.contents]
    asked = questions(task, [answers if own else {} for answers, own in zip(one.answers, same, strict=True)])
    pairs = [pair for each in asked for pair in versus.versus(each, one.difference)]
    lost = [failures for each in asked if (failures := versus.failures(each)) is not None]
    return Gallery(one.name, pairs, lost)
