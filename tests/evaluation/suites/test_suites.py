"""The lists of suites, and what their means say when sets are missing."""

import math
from collections import Counter
from pathlib import Path

import pytest

from vlp import resolve
from vlp.evaluation.suites import base, datacomp38
from vlp.evaluation.suites.base import Entry, Suite
from vlp.types import UserError


@pytest.mark.parametrize("name", base.names())
def test_every_suite_is_whole(name: str) -> None:
    suite = base.suite(name)
    assert resolve.summary(base.SUITES, name.replace("-", "_")).endswith(".")
    names = [entry.name for entry in suite.entries]
    assert len(set(names)) == len(names)
    for entry in suite.entries:
        assert entry.where
        assert entry.places
        assert entry.metrics or entry.not_computed
        assert set(entry.groups) <= set(suite.groups)
        assert not entry.task or entry.task in resolve.names("vlp.evaluation.tasks")
        assert [one.name for one in suite.entries if set(one.places) & set(entry.places)] == [entry.name]


def test_datacomp_has_its_38_sets_in_its_groups() -> None:
    entries = datacomp38.SUITE.entries
    assert len(entries) == 40
    assert sum(bool(entry.metrics) for entry in entries) == 38
    counts = Counter(group for entry in entries for group in entry.groups)
    assert counts == {"ImageNet": 1, "ImageNet dist. shifts": 6, "VTAB": 13, "Retrieval": 3}
    assert Counter(entry.metrics for entry in entries)["mean_per_class_recall",] == 4
    assert [mean.total for mean in datacomp38.SUITE.means({})] == [1, 6, 13, 3, 38]


def test_the_page_names_every_suite_and_set() -> None:
    page = (Path(__file__).parents[3] / "docs" / "suites.md").read_text(encoding="utf-8")
    for name in base.names():
        assert f"| `{name}` |" in page
        assert [entry.name for entry in base.suite(name).entries if entry.name not in page] == []


def test_shifts_are_those_of_datacomp() -> None:
    names = [entry.name for entry in base.suite("imagenet-shifts").entries]
    assert sorted(names) == [
        "ImageNet 1k",
        "ImageNet Sketch",
        "ImageNet v2",
        "ImageNet-A",
        "ImageNet-O",
        "ImageNet-R",
        "ObjectNet",
    ]


def entry(name: str, *groups: str, metrics: tuple[str, ...] = ("acc1",)) -> Entry:
    return Entry(name, (f"wds_{name}", name), metrics, "somewhere", groups)


SUITE = Suite((entry("a", "x"), entry("b", "x", metrics=("up", "down")), entry("c")), ("x",), "Average")


def test_means_say_how_much_is_there_and_an_average_is_one_only_if_whole() -> None:
    scores = SUITE.scores({"wds_a": {"acc1": 0.5}, "other": {"acc1": 1.0}, "c": {"acc1": 0.1}})
    assert scores == {"a": 0.5, "c": 0.1}
    assert [(mean.label, mean.value) for mean in SUITE.means(scores)] == [
        ("x (1 of 2)", 0.5),
        ("mean of what is there (2 of 3)", pytest.approx(0.3)),
    ]
    whole = SUITE.means({"a": 0.5, "b": 0.7, "c": 0.3})
    assert [(mean.label, mean.value) for mean in whole] == [("x", pytest.approx(0.6)), ("Average", pytest.approx(0.5))]
    assert SUITE.means({})[0].value is None


def test_a_main_metric_of_two_needs_both() -> None:
    assert SUITE.scores({"b": {"up": 0.4, "down": 0.2}}) == {"b": pytest.approx(0.3)}
    assert SUITE.scores({"b": {"up": 0.4}}) == {}
    assert SUITE.scores({"b": {"up": 0.4, "down": None}}) == {}
    assert SUITE.scores({"a": {"acc1": math.nan}}) == {}


def test_what_is_there_is_found_by_the_first_of_its_names(tmp_path) -> None:
    for name in ("a", "wds_a", "c"):
        (tmp_path / name).mkdir()
    present, missing = SUITE.below(tmp_path)
    assert {Path(place).name: one.name for place, one in present.items()} == {"wds_a": "a", "c": "c"}
    assert base.missing(missing) == ["b: looked for wds_b, b; get it from somewhere"]


def test_an_unknown_suite_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'imagenet-shifts'"):
        base.suite("imagenet-shift")
