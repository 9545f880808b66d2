from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from vlp.data.captions import CaptionSource, check_sources, draw
from vlp.data.samples import BadSample
from vlp.types import UserError

TXT = CaptionSource(source="txt")
REWRITES = CaptionSource(source="json.rewrites")


def sample(txt: str | None = "plain", **record: Any) -> dict[str, bytes]:
    members = {"json": json.dumps(record).encode()} if record else {}
    return members if txt is None else {**members, "txt": txt.encode()}


def drawn(members: dict[str, bytes], sources: list[CaptionSource], times: int = 400) -> list[str]:
    generator = np.random.default_rng(0)
    return [draw(members, sources, generator) for _ in range(times)]


def test_weights_and_lists() -> None:
    sources = [TXT, CaptionSource(source="json.rewrites", weight=3)]
    captions = drawn(sample(rewrites=["a", "b"]), sources, 4000)
    assert abs(captions.count("plain") - 1000) < 120
    assert abs(captions.count("a") - 1500) < 140
    assert abs(captions.count("b") - 1500) < 140


def test_weights_are_shared_among_the_sources_that_a_sample_has() -> None:
    sources = [TXT, REWRITES, CaptionSource(source="json.title")]
    assert set(drawn(sample(title="head"), sources)) == {"plain", "head"}
    assert set(drawn(sample(None, title="head"), sources)) == {"head"}


@pytest.mark.parametrize("value", ["", "  ", [""], [], None, 7, {"a": "b"}])
def test_an_empty_or_foreign_value_falls_back_to_the_txt(value: Any) -> None:
    assert set(drawn(sample(rewrites=value), [REWRITES], 5)) == {"plain"}


def test_without_any_text_the_sample_is_bad() -> None:
    for members in (sample(" \n"), sample(None), sample(None, rewrites=[""])):
        with pytest.raises(BadSample) as caught:
            draw(members, [TXT, REWRITES], np.random.default_rng(0))
        assert caught.value.kind == "empty caption"


def test_broken_members_are_named() -> None:
    with pytest.raises(BadSample, match="broken JSON"):
        draw({"txt": b"a", "json": b"{"}, [REWRITES], np.random.default_rng(0))
    with pytest.raises(BadSample, match="UTF-8"):
        draw({"txt": b"\xff"}, [TXT], np.random.default_rng(0))
    assert draw({"txt": b"a", "json": b"{"}, [TXT], np.random.default_rng(0)) == "a"


def test_later_draws_do_not_depend_on_the_sources() -> None:
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    draw(sample(rewrites=["a", "b"]), [TXT, REWRITES], first)
    draw(sample(), [TXT], second)
    assert first.random() == second.random()


def test_a_source_that_no_sample_has_is_refused() -> None:
    samples = [sample(rewrites=["a"], title="t")] * 3
    with pytest.raises(UserError, match=r"'json\.rewrite'.*JSON fields there: rewrites, title"):
        check_sources(samples, [TXT, CaptionSource(source="json.rewrite")])
    with pytest.raises(UserError, match="'txt'"):
        check_sources([sample(None, title="t")], [TXT])


def test_a_source_that_some_sample_has_is_accepted() -> None:
    check_sources([{"txt": b"\xff"}, {"txt": b"a", "json": b"{"}, sample(), sample(rewrites=["a"])], [TXT, REWRITES])


def test_a_source_that_cannot_be_decoded_is_there() -> None:
    """It is counted as a bad sample of its kind; that it were missing would send people looking for the wrong thing."""
    check_sources([{"txt": b"\xff"}], [TXT])
    check_sources([{"json": b"{"}], [REWRITES])


@pytest.mark.parametrize("bad", [{"source": "json."}, {"source": "caption"}, {"source": "txt", "weight": 0}])
def test_options_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CaptionSource(**bad)
