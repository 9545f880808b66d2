"""Filters over the columns of layers: ``aesthetic > 5 and clip_score.value > 0.28 and not (lang.code == 'de')``.

A name is a LAYER with exactly one column, or LAYER.COLUMN. There are ``and``, ``or``, ``not``, comparisons (chained
ones too), ``in [..]``, ``+ - * /``, numbers and quoted text, and nothing else: an expression is read as a syntax
tree of these and evaluated over whole columns; it is never run as code. A column of kind ``bool`` is a condition.

Where a layer does not cover a sample the value is unknown, as is what divides by zero. Unknown spreads through
arithmetic, comparisons and ``not``; ``and`` and ``or`` know their result if the other side decides it. A sample of
which the whole expression is unknown is not kept, and is counted. Numbers are float64.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlp.data.layer_files import layer_columns, layers_root, list_layers, no_layer, pick_column
from vlp.data.layers import Column, LayerReader
from vlp.data.shards import LOCAL, Shard
from vlp.data.store import Store
from vlp.types import Skipped, UserError

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_KINDS = {"float": "number", "int": "number", "bool": "bool", "text": "text"}
_NOUNS = {"truth": "a condition", "bool": "true or false", "number": "a number", "text": "text"}
_MAX_DEPTH = 100
_MAX_INT = 2**53  # beyond it float64 merges neighbours
_GRAMMAR = "use only and, or, not, comparisons, in [..], + - * /, numbers, quoted text and names of layers"


class Truth(NamedTuple):
    """Of each row, whether the condition holds and whether it fails; where neither, it is unknown."""

    true: np.ndarray
    false: np.ndarray


class Value(NamedTuple):
    """Numbers or text of each row, and where they are known."""

    values: np.ndarray
    known: np.ndarray


class Filter:
    """One expression, parsed; `check` holds it against the layers there are, `mask` evaluates it.

    Raises:
        UserError: what is not part of the language, with its place.
    """

    def __init__(self, expression: str) -> None:
        self.expression = expression.replace("\n", " ").strip()
        self._tree = self._parse()
        self.columns: dict[str, set[str | None]] = {}  # None: the only one of its layer
        self._places: dict[str, str] = {}
        self._expect(self._tree, "truth", None)
        if not self.columns:
            raise UserError(f"data.filter: '{self.expression}' names no layer, so it keeps all or nothing: name one")

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers it needs, sorted."""
        return tuple(sorted(self.columns))

    def no_layer(self, layer: str, known: Iterable[str], folder: str = "") -> UserError:
        """The sentence for a ``layer`` that it names and that is not among the ``known`` ones."""
        return no_layer(f"{self._places[layer]}, if no text that wants quotes", layer, known, folder)

    def check(self, kinds: Mapping[str, Mapping[str, str]]) -> None:
        """Hold every name against the layers there are: layer -> column -> kind.

        Raises:
            UserError: no such layer or column, or a comparison of text with numbers.
        """
        self._expect(self._tree, "truth", kinds)

    def mask(self, columns: Mapping[str, Mapping[str, Column]]) -> tuple[np.ndarray, int]:
        """(which rows are kept, how many are not because the result is unknown) of layer -> column -> values.

        Values as `LayerReader.columns_of` gives them. Of a layer without ``.COLUMN`` give the one column.
        """
        num_rows = len(next(iter(next(iter(columns.values())).values())))
        with np.errstate(all="ignore"):
            truth = self._truth(self._tree, columns, num_rows)
        return truth.true, int(num_rows - np.count_nonzero(truth.true | truth.false))

    def _parse(self) -> ast.expr:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(self.expression, mode="eval").body
        except SyntaxError as error:
            raise UserError(
                f"data.filter, column {error.offset or 1} of '{_short(self.expression)}': {error.msg}: "
                "write it like aesthetic > 5 and lang.code == 'en'"
            ) from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"data.filter: cannot be read ({error}): {_GRAMMAR}") from error
        level, depth = [tree], 0
        while level:
            depth += 1
            level = [child for node in level for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        if depth > _MAX_DEPTH:
            raise UserError(f"data.filter: is nested {depth} deep, more than {_MAX_DEPTH}: write it more simply")
        return tree

    # What each part is: "truth" (a condition), "number", "bool" (a column or a constant, good for both) or "text".

    def _kind(self, node: ast.expr, kinds: Mapping[str, Mapping[str, str]] | None) -> str:
        """Without ``kinds`` a name is "any", which fits everywhere."""
        match node:
            case ast.BoolOp():
                for value in node.values:
                    self._expect(value, "truth", kinds)
                return "truth"
            case ast.UnaryOp(op=ast.Not()):
                self._expect(node.operand, "truth", kinds)
                return "truth"
            case ast.Compare():
                self._check_comparison(node, kinds)
                return "truth"
            case ast.UnaryOp() if type(node.op) in _SIGNS:
                return self._expect(node.operand, "number", kinds)
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                self._expect(node.left, "number", kinds)
                return self._expect(node.right, "number", kinds)
            case ast.Constant():
                return self._kind_of_constant(node)
            case ast.Name() | ast.Attribute(value=ast.Name()):
                return self._kind_of_name(node, kinds)
            case ast.List() | ast.Tuple():
                raise self._error(node, "a list stands only after in: write NAME in ['a', 'b']")
        raise self._error(node, f"this is not allowed: {_GRAMMAR}")

    def _expect(self, node: ast.expr, wanted: str, kinds: Mapping[str, Mapping[str, str]] | None) -> str:
        kind = self._kind(node, kinds)
        is_constant = isinstance(node, ast.Constant)
        fits = {"truth": ("truth", "any") if is_constant else ("truth", "bool", "any"), "number": ("number", "any")}
        if kind not in fits[wanted]:
            cure = (
                "compare it with something, as in aesthetic > 5" if wanted == "truth" else "arithmetic is for numbers"
            )
            raise self._error(node, f"this is {_NOUNS[kind]}, not {_NOUNS[wanted]}: {cure}")
        return wanted

    def _check_comparison(self, node: ast.Compare, kinds: Mapping[str, Mapping[str, str]] | None) -> None:
        sides = [node.left, *node.comparators]
        for left, comparison, right in zip(sides[:-1], node.ops, sides[1:], strict=True):
            is_list = isinstance(comparison, ast.In | ast.NotIn)
            if is_list and not isinstance(right, ast.List | ast.Tuple):
                raise self._error(right, "in wants a list: write NAME in ['a', 'b']")
            if not is_list and type(comparison) not in _COMPARISONS:
                raise self._error(node, f"this comparison is not allowed: {_GRAMMAR}")
            for other in right.elts if isinstance(right, ast.List | ast.Tuple) and is_list else [right]:
                if is_list and not _is_constant(other):
                    raise self._error(other, "a list after in holds only numbers or quoted text")
                self._check_pair(left, other, kinds)
            if is_list:
                self._check_pair(left, left, kinds)

    def _check_pair(self, left: ast.expr, right: ast.expr, kinds: Mapping[str, Mapping[str, str]] | None) -> None:
        found = []
        for side in (left, right):
            kind = self._kind(side, kinds)
            if kind == "truth":
                raise self._error(side, "a condition cannot be compared: join conditions with and, or, not")
            found.append("number" if kind == "bool" else kind)
        if "any" not in found and found[0] != found[1]:
            cure = "quote both or neither" if all(map(_is_constant, (left, right))) else "compare like with like"
            nouns = [_NOUNS[kind] for kind in found]
            raise self._error(left, f"this is {nouns[0]} and is compared with {nouns[1]}: {cure}")

    def _kind_of_constant(self, node: ast.Constant) -> str:
        if isinstance(node.value, bool):
            return "bool"
        if isinstance(node.value, int) and node.value > _MAX_INT:
            raise self._error(node, f"numbers are exact up to {_MAX_INT}: take a smaller one")
        if isinstance(node.value, int | float):
            return "number"
        if isinstance(node.value, str):
            return "text"
        raise self._error(node, f"this is not allowed: {_GRAMMAR}")

    def _kind_of_name(self, node: ast.Name | ast.Attribute, kinds: Mapping[str, Mapping[str, str]] | None) -> str:
        layer, column = _name(node)
        if kinds is None:
            self.columns.setdefault(layer, set()).add(column)
            self._places.setdefault(layer, self._place(node))
            return "any"
        if layer not in kinds:
            raise self.no_layer(layer, kinds)
        if column is None and len(kinds[layer]) > 1:  # those it cannot use count too, or adding one would change sense
            names = ", ".join(f"{layer}.{name}" for name in kinds[layer])
            raise self._error(node, f"this layer has several columns: write {names.replace(', ', ' or ')}")
        return _KINDS[kinds[layer][pick_column(self._place(node), layer, kinds[layer], column, tuple(_KINDS))]]

    def _place(self, node: ast.expr) -> str:
        before = self.expression.encode()[: node.col_offset].decode()
        return f"data.filter, column {len(before) + 1}, '{_short(ast.get_source_segment(self.expression, node) or '')}'"

    def _error(self, node: ast.expr, problem: str) -> UserError:
        return UserError(f"{self._place(node)}: {problem}")

    # Evaluation, once the tree has been checked.

    def _truth(self, node: ast.expr, columns: Mapping[str, Mapping[str, Column]], num_rows: int) -> Truth:
        if isinstance(node, ast.BoolOp):
            parts = [self._truth(value, columns, num_rows) for value in node.values]
            return reduce(_and if isinstance(node.op, ast.And) else _or, parts)
        if isinstance(node, ast.UnaryOp):
            inner = self._truth(node.operand, columns, num_rows)
            return Truth(inner.false, inner.true)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            links = zip(sides[:-1], node.ops, sides[1:], strict=True)
            return reduce(_and, [self._compare(*link, columns, num_rows) for link in links])
        values, known = self._value(node, columns, num_rows)
        holds = np.zeros(num_rows, bool)
        holds[known] = values[known] != 0
        return Truth(holds, known & ~holds)

    def _compare(
        self,
        left: ast.expr,
        comparison: ast.cmpop,
        right: ast.expr,
        columns: Mapping[str, Mapping[str, Column]],
        num_rows: int,
    ) -> Truth:
        a = self._value(left, columns, num_rows)
        holds = np.zeros(num_rows, bool)
        if isinstance(right, ast.List | ast.Tuple):
            known = a.known
            listed = {_constant(item) for item in right.elts}
            holds[known] = np.fromiter((value in listed for value in a.values[known].tolist()), bool)
            if isinstance(comparison, ast.NotIn):
                holds = known & ~holds
        else:
            b = self._value(right, columns, num_rows)
            known = a.known & b.known
            if known.any():  # a layer without a file for this shard has no type to compare
                holds[known] = _COMPARISONS[type(comparison)](a.values[known], b.values[known])
        return Truth(holds, known & ~holds)

    def _value(self, node: ast.expr, columns: Mapping[str, Mapping[str, Column]], num_rows: int) -> Value:
        if isinstance(node, ast.Constant):
            constant = _constant(node)
            dtype = object if isinstance(constant, str) else np.float64
            return Value(np.full(num_rows, constant, dtype), np.ones(num_rows, bool))
        if isinstance(node, ast.UnaryOp):
            inner = self._value(node.operand, columns, num_rows)
            return Value(_SIGNS[type(node.op)](inner.values), inner.known)
        if isinstance(node, ast.BinOp):
            a, b = self._value(node.left, columns, num_rows), self._value(node.right, columns, num_rows)
            values = _ARITHMETIC[type(node.op)](a.values, b.values)
            known = a.known & b.known & ~np.isnan(values)
            return Value(values, known & (b.values != 0) if isinstance(node.op, ast.Div) else known)
        layer, column = _name(node)
        found = columns[layer]
        assert column is not None or len(found) == 1, found.keys()
        values = np.asarray(next(iter(found.values())) if column is None else found[column])
        is_text = values.dtype == object
        known = np.fromiter((v is not None for v in values), bool, num_rows) if is_text else ~np.isnan(values)
        return Value(values, known)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."


def _name(node: ast.expr) -> tuple[str, str | None]:
    if isinstance(node, ast.Attribute):
        assert isinstance(node.value, ast.Name)
        return node.value.id, node.attr
    assert isinstance(node, ast.Name)
    return node.id, None


def _is_constant(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        return isinstance(node.operand, ast.Constant)
    return isinstance(node, ast.Constant)


def _constant(node: ast.expr) -> str | float:
    if isinstance(node, ast.UnaryOp):
        return float(_SIGNS[type(node.op)](_constant(node.operand)))
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, str | int | float)
    return node.value if isinstance(node.value, str) else float(node.value)


def _and(a: Truth, b: Truth) -> Truth:
    return Truth(a.true & b.true, a.false | b.false)


def _or(a: Truth, b: Truth) -> Truth:
    return Truth(a.true | b.true, a.false & b.false)


class LayerFilter:
    """``data.filter`` at work: which samples of a shard are kept.

    Raises:
        UserError: the expression is wrong, or names what the layers of ``shard_paths`` do not have.
    """

    def __init__(
        self,
        expression: str,
        shard_paths: Sequence[str],
        root: str | Path | None = None,
        store: Store = LOCAL,
    ) -> None:
        parsed = Filter(expression)
        kinds = {}
        for name in parsed.layers:
            columns = layer_columns(name, shard_paths, root, store)
            if columns is None:
                raise parsed.no_layer(name, list_layers(shard_paths, root, store), layers_root(shard_paths[0], root))
            kinds[name] = columns
        parsed.check(kinds)
        self._filter = parsed
        self._readers = {
            name: LayerReader(root, name, {c: k for c, k in kinds[name].items() if wanted & {c, None}}, store)
            for name, wanted in parsed.columns.items()
        }

    def mask(self, shard: Shard) -> tuple[np.ndarray, int, list[Skipped]]:
        """(kept rows as booleans, samples left out because a value is missing, layer files that could not be used)."""
        columns = {name: reader.columns_of(shard) for name, reader in self._readers.items()}
        defects = [reader.defect_of(shard) for reader in self._readers.values()]
        kept, missing = self._filter.mask(columns)
        return kept, missing, [defect for defect in defects if defect]
