from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vlp.data.expression import Filter, LayerFilter
from vlp.data.index import open_shard
from vlp.data.layers import LayerWriter
from vlp.data.shards import Shard, find_shards
from vlp.types import UserError

NAN = float("nan")
LAYERS = {
    "aesthetic": {"value": "float"},
    "clip_score": {"score": "float", "model": "text"},
    "lang": {"code": "text", "sure": "bool"},
    "tags": {"all": "texts"},
}
COLUMNS: dict[str, dict[str, Any]] = {
    "aesthetic": {"value": np.array([6.0, 4.0, NAN, 7.0])},
    "clip_score": {"score": np.array([0.3, 0.5, 0.9, NAN]), "model": np.array(["B", "L", None, "B"], object)},
    "lang": {"code": np.array(["de", "en", "en", None], object), "sure": np.array([1.0, 0.0, NAN, 1.0])},
}


@pytest.mark.parametrize(
    ("expression", "kept", "missing"),
    [
        ("aesthetic > 5", [0, 3], 1),
        ("aesthetic > 5 and clip_score.score > 0.28 and not (lang.code == 'de')", [], 2),
        ("not aesthetic > 5", [1], 1),
        ("not (not aesthetic > 5)", [0, 3], 1),
        ("aesthetic > 5 or clip_score.score > 0.8", [0, 2, 3], 0),
        ("aesthetic < 5 and clip_score.score < 0.8", [1], 0),
        ("4 <= aesthetic < 7", [0, 1], 1),
        ("lang.code in ['en', 'fr']", [1, 2], 1),
        ("lang.code not in ('en',)", [0], 1),
        ("lang.code in []", [], 1),
        ("lang.code < 'e'", [0], 1),
        ("lang.sure", [0, 3], 1),
        ("not lang.sure and aesthetic > 0", [1], 1),
        ("lang.sure == False", [1], 1),
        ("aesthetic in [6, +7, -1]", [0, 3], 1),
        ("aesthetic * clip_score.score / 2 > 0.95", [1], 2),
        ("1 / (aesthetic - 4) > 0.4", [0], 2),
        ("-aesthetic < -5", [0, 3], 1),
        ("aesthetic != 6", [1, 3], 1),
        ("clip_score.model == lang.code or 'B' == clip_score.model", [0, 3], 1),
        ("aesthetic > 5\n  and aesthetic < 6.5", [0], 1),
    ],
)
def test_what_is_kept(expression: str, kept: list[int], missing: int) -> None:
    parsed = Filter(expression)
    parsed.check(LAYERS)
    mask, unknown = parsed.mask({layer: COLUMNS[layer] for layer in parsed.layers})
    assert np.flatnonzero(mask).tolist() == kept
    assert unknown == missing


def test_what_is_needed() -> None:
    parsed = Filter("a > 1 and (b.x < 2 or b.y == 'q') and a < 9")
    assert parsed.layers == ("a", "b")
    assert parsed.columns == {"a": {None}, "b": {"x", "y"}}


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("", "column 1 of ''"),
        ("aesthetic >", "column .* of 'aesthetic >': .*write it like"),
        ("aesthetic > 5 &&", "write it like"),
        ("__import__('os').system('x') == 0", r"column 1, .*is not allowed: use only and, or"),
        ("aesthetic.__class__.__name__ == 'x'", "is not allowed"),
        ("(lambda: 1)() > aesthetic", "is not allowed"),
        ("[x for x in (1, 2)] == aesthetic", "is not allowed"),
        ("aesthetic[0] > 1", "is not allowed"),
        ("aesthetic if aesthetic else 1", "is not allowed"),
        ("f'{aesthetic}' == '1'", "is not allowed"),
        ("aesthetic ** 99 > 1", "is not allowed"),
        ("aesthetic % 2 == 1", "is not allowed"),
        ("aesthetic is 5", "this comparison is not allowed"),
        ("aesthetic == None", "column 14, 'None': this is not allowed"),
        ("aesthetic > 5j", "is not allowed"),
        ("aesthetic > b'5'", "is not allowed"),
        ("(aesthetic := 5) > 1", "is not allowed"),
        ("aesthetic in lang", "in wants a list"),
        ("aesthetic in [1 + 1]", "a list after in holds only"),
        ("aesthetic in [lang]", "a list after in holds only"),
        ("[1, 2] == aesthetic", "a list stands only after in"),
        ("aesthetic + 1", "this is a number, not a condition: compare it"),
        ("aesthetic > 5 or 'en'", "column 18, ''en'': this is text, not a condition"),
        ("aesthetic > 5 and True", "this is true or false, not a condition"),
        ("(aesthetic > 5) == (lang == 'x')", "a condition cannot be compared"),
        ("(aesthetic > 5) + 1 > 2", "this is a condition, not a number"),
        ("'a' + aesthetic > 2", "this is text, not a number"),
        ("1 < 2", "names no layer"),
        ("1 < 'x' or aesthetic > 2", "this is a number and is compared with text"),
        ("aesthetic > 9007199254740993", "exact up to"),
        ("not " * 150 + "aesthetic > 1", "is nested"),
        ("(" * 500 + "aesthetic" + ")" * 500 + " > 1", "data.filter"),
        ("aesthetic > 1" + "1" * 9000, "data.filter"),
        ("aesthetic\0 > 1", "data.filter"),
        ("äöü > 1 and aesthetic.b.c > 2", "column 13, 'aesthetic.b.c'"),
    ],
)
def test_what_is_not_of_the_language_is_refused_with_its_place(expression: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        Filter(expression)
    assert str(caught.value).startswith("data.filter")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("aesthetics > 5", r"no layer 'aesthetics': the layers there are: aesthetic, "),
        ("lang.code == en", "column 14, 'en', if no text that wants quotes: no layer 'en'"),
        ("clip_score > 0.3", r"several columns: write clip_score\.score or clip_score\.model"),
        ("clip_score.scor > 0.3", r"no column 'scor'.*score \(float\), model \(text\)"),
        ("tags.all == 'a'", "is not float or int or bool or text"),
        ("aesthetic == 'high'", "this is a number and is compared with text"),
        ("lang.code > 3", "this is text and is compared with a number"),
        ("lang.code in [1]", "this is text and is compared with a number"),
        ("aesthetic < 3 < lang.code", "compared with"),
        ("aesthetic", "this is a number, not a condition"),
        ("lang.code", "this is text, not a condition"),
        ("lang.sure + 1 > 1", "this is true or false, not a number"),
        ("-lang.code > 1", "this is text, not a number"),
    ],
)
def test_names_and_kinds_are_held_against_the_layers(expression: str, sentence: str) -> None:
    parsed = Filter(expression)
    with pytest.raises(UserError, match=sentence):
        parsed.check(LAYERS)


# The slow reference: the same expressions as nested tuples, evaluated a row at a time; None is unknown.

NUMBERS, TEXTS, FLAGS = ("n.a", "n.b", "one"), ("t.a", "t.b"), ("f.a",)
ROW = st.fixed_dictionaries(
    {name: st.none() | st.sampled_from([-1.0, 0.0, 0.5, 2.0, 1e308, float("inf")]) for name in NUMBERS}
    | {name: st.none() | st.sampled_from(["", "a", "b"]) for name in TEXTS}
    | {name: st.none() | st.booleans() for name in FLAGS}
)
NUMBER = st.recursive(
    st.tuples(st.just("column"), st.sampled_from(NUMBERS))
    | st.tuples(st.just("constant"), st.sampled_from([0, 1, 0.5])),
    lambda inner: st.tuples(st.sampled_from("+-*/"), inner, inner) | st.tuples(st.just("negative"), inner),
    max_leaves=4,
)
TEXT = st.tuples(st.just("column"), st.sampled_from(TEXTS)) | st.tuples(st.just("constant"), st.sampled_from(["", "a"]))
OPERATORS = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
MEMBERSHIP = st.sampled_from(["in", "not in"])
COMPARISON = (
    st.tuples(st.just("compare"), NUMBER, OPERATORS, NUMBER)
    | st.tuples(st.just("compare"), TEXT, OPERATORS, TEXT)
    | st.tuples(st.just("chain"), NUMBER, OPERATORS, NUMBER, OPERATORS, NUMBER)
    | st.tuples(MEMBERSHIP, NUMBER, st.lists(st.sampled_from([-1, 0, 2.0]), max_size=3))
    | st.tuples(MEMBERSHIP, TEXT, st.lists(st.sampled_from(["", "a"]), max_size=3))
    | st.tuples(st.just("column"), st.sampled_from(FLAGS))
)
CONDITION = st.recursive(
    COMPARISON,
    lambda inner: st.tuples(st.sampled_from(["and", "or"]), inner, inner) | st.tuples(st.just("not"), inner),
    max_leaves=5,
)


def written(node: Any) -> str:
    match node:
        case ("column", name):
            return name
        case ("constant", value):
            return repr(value)
        case ("negative", inner):
            return f"(-{written(inner)})"
        case ("not", inner):
            return f"(not {written(inner)})"
        case ("compare", a, operator, b):
            return f"({written(a)} {operator} {written(b)})"
        case ("chain", a, first, b, second, c):
            return f"({written(a)} {first} {written(b)} {second} {written(c)})"
        case ("in" | "not in" as operator, a, values):
            return f"({written(a)} {operator} {values!r})"
        case (operator, a, b):
            return f"({written(a)} {operator} {written(b)})"
    raise AssertionError(node)


def compared(a: Any, operator: str, b: Any) -> bool | None:
    if a is None or b is None:
        return None
    return {"==": a == b, "!=": a != b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[operator]


def both(a: bool | None, b: bool | None) -> bool | None:
    if a is False or b is False:
        return False
    return None if a is None or b is None else True


def negated(a: bool | None) -> bool | None:
    return None if a is None else not a


def reference(node: Any, row: dict[str, Any]) -> Any:
    match node:
        case ("column", name):
            return row[name]
        case ("constant", value):
            return value
        case ("negative", inner):
            value = reference(inner, row)
            return None if value is None else -value
        case ("not", inner):
            return negated(reference(inner, row))
        case ("and", a, b):
            return both(reference(a, row), reference(b, row))
        case ("or", a, b):
            return negated(both(negated(reference(a, row)), negated(reference(b, row))))
        case ("compare", a, operator, b):
            return compared(reference(a, row), operator, reference(b, row))
        case ("chain", a, first, b, second, c):
            middle = reference(b, row)
            left = compared(reference(a, row), first, middle)
            return both(left, compared(middle, second, reference(c, row)))
        case ("in" | "not in" as operator, a, values):
            value = reference(a, row)
            return None if value is None else (value in values) == (operator == "in")
        case (operator, a, b):
            x, y = reference(a, row), reference(b, row)
            if x is None or y is None or (operator == "/" and y == 0):
                return None
            result = {"+": lambda: x + y, "-": lambda: x - y, "*": lambda: x * y, "/": lambda: x / y}[operator]()
            return None if result != result else result
    raise AssertionError(node)


@settings(max_examples=400, deadline=None)
@given(CONDITION, st.lists(ROW, min_size=1, max_size=8))
def test_columns_give_what_rows_give(node: Any, rows: list[dict[str, Any]]) -> None:
    expression = written(node)
    assume(any(name in expression for name in (*NUMBERS, *TEXTS, *FLAGS)))
    parsed = Filter(expression)
    kinds = {
        "n": {"a": "float", "b": "int"},
        "one": {"v": "float"},
        "t": {"a": "text", "b": "text"},
        "f": {"a": "bool"},
    }
    parsed.check(kinds)
    columns: dict[str, dict[str, Any]] = {layer: {} for layer in parsed.layers}
    for name in NUMBERS + TEXTS + FLAGS:
        layer, _, column = name.partition(".")
        if layer in columns:
            values = [row[name] for row in rows]
            is_text = name in TEXTS
            columns[layer][column or "v"] = np.array(values, object if is_text else np.float64)
    mask, missing = parsed.mask(columns)
    wanted = [reference(node, row) for row in rows]
    assert mask.tolist() == [result is True for result in wanted]
    assert missing == wanted.count(None)


TOKENS = [
    *("a", "b.c", "1", "0.5", "'x'", "True", "(", ")", "[", "]", ",", "+", "-", "*", "/", "**", "@"),
    *("and", "or", "not", "in", "is", "==", "!=", "<", ">=", ":", ".", "lambda", "if", "else", "{}", "#", "\\"),
]


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=40) | st.lists(st.sampled_from(TOKENS), max_size=12).map(" ".join))
def test_any_text_is_read_and_evaluated_or_refused(expression: str) -> None:
    columns = {"a": {"v": np.array([1.0, NAN])}, "b": {"c": np.array([0.0, 2.0])}}
    try:
        parsed = Filter(expression)
        parsed.check({"a": {"v": "float"}, "b": {"c": "bool"}})
    except UserError:
        return
    mask, missing = parsed.mask({layer: columns[layer] for layer in parsed.layers})
    assert mask.shape == (2,)
    assert 0 <= missing <= 2 - mask.sum()


@pytest.fixture
def shards(write_shards: Any) -> list[Shard]:
    found = [open_shard(path)[0] for path in find_shards(str(write_shards(10, 4)))]
    scores, langs = LayerWriter(None, "aesthetic", {}), LayerWriter(None, "lang", {})
    for number, shard in enumerate(found):
        keys = [shard.key(row) for row in range(len(shard))]
        if number != 1:
            scores.write(shard, keys[1:], {"value": [float(key) for key in keys[1:]]})
        langs.write(shard, keys, {"code": ["de", "en"] * (len(keys) // 2), "sure": [True] * len(keys)})
    return found


def kept_keys(layer_filter: LayerFilter, shard: Shard) -> tuple[list[str], int]:
    mask, missing, defects = layer_filter.mask(shard)
    assert not defects
    return [shard.key(row) for row in np.flatnonzero(mask)], missing


def test_a_filter_over_shards(shards: list[Shard]) -> None:
    paths = [shard.path for shard in shards]
    layer_filter = LayerFilter("aesthetic < 20002 and lang.code == 'en'", paths)
    first, second, third = (kept_keys(layer_filter, shard) for shard in shards)
    assert first == (["000000001", "000000003"], 0)
    assert second == ([], 2)  # the German half fails whatever its score may be
    assert third == (["000020001"], 0)


def test_a_filter_names_the_layers_there_are(shards: list[Shard], tmp_path: Path) -> None:
    paths = [shard.path for shard in shards]
    with pytest.raises(
        UserError, match=r"data\.filter, column 1, 'aesthetik'.*no layer 'aesthetik' in .*: aesthetic, "
    ):
        LayerFilter("aesthetik > 1", paths)
    with pytest.raises(UserError, match="there are no layers yet"):
        LayerFilter("aesthetic > 1", paths, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"lang\.code or lang\.sure"):
        LayerFilter("lang == 'de'", paths)


def test_a_broken_layer_file_is_told(shards: list[Shard]) -> None:
    Path(shards[0].path).parent.joinpath("layers/lang/00000.parquet").write_bytes(b"PAR1")
    layer_filter = LayerFilter("lang.code == 'en'", [shard.path for shard in shards])
    mask, missing, defects = layer_filter.mask(shards[0])
    assert not mask.any()
    assert missing == 4
    assert [defect.kind for defect in defects] == ["unreadable layer"]
