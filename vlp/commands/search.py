"""Pictures and texts among embeddings that vlp embed made: by a text, a picture, or by arithmetic.

  vlp search embeddings "a red circle"                              text -> pictures
  vlp search embeddings --image mine.jpg                            picture -> pictures
  vlp search embeddings --image mine.jpg --find texts               picture -> captions
  vlp search embeddings --image mine.jpg --plus red --minus blue    a direction is added: red, but not blue
  vlp search embeddings "a house" --towards b.txt --away-from a.txt the direction between two sets of texts or pictures
  vlp search embeddings --serve                                     a page to type and click in

The model is the one that made the embeddings. Where a direction is added the query is norm(f(query) + weight x r), with
r = norm(norm(mean of plus and towards) - norm(mean of minus and away-from)).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vlp.commands import _model
from vlp.types import UserError

if TYPE_CHECKING:
    from vlp.search.query import Query

HOST, PORT = "127.0.0.1", 8642
_MOST = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("embeddings", type=Path, metavar="EMBEDDINGS", help="directory that vlp embed wrote")
    add("text", nargs="?", metavar="QUERY", help="what to look for")
    add("--image", metavar="FILE", help="a picture to look for, instead of a text")
    add("--plus", action="append", default=[], metavar="TEXT", help="move the query towards this (may be repeated)")
    add("--minus", action="append", default=[], metavar="TEXT", help="and away from this")
    add("--towards", metavar="SET", help="a .txt of such texts, a line each, or a folder of pictures")
    add("--away-from", metavar="SET", help="the same, to move away from")
    add("--weight", type=float, metavar="W", help="of the direction; the query itself has 1 (default 1)")
    add("--find", choices=("pictures", "texts"), default="pictures", help="what is found (default: %(default)s)")
    add("--top", type=int, default=10, metavar="N", help="how many (default: %(default)s)")
    add("--model", help="MODEL that made the embeddings, if it lies elsewhere now")
    _model.add_offline(parser)
    add("--json", metavar="FILE", help="write the results as JSON (-: standard output)")
    add("--html", type=Path, metavar="FILE", help="write a page with the pictures, self-contained")
    add("--serve", action="store_true", help="show a page to search with in a browser, until Ctrl-C")
    add("--port", type=int, metavar="P", help=f"of the page (default {PORT}; 0: any that is free)")
    add("--host", help=f"address that the page is served on (default {HOST}: this machine only)")


def run(arguments: argparse.Namespace) -> None:
    """
    Raises:
        UserError: options that exclude each other, no embeddings, or not their model.
    """
    query = None if arguments.serve else _query(arguments)
    _check(arguments)
    _model.heed(arguments)
    from vlp.search.searcher import Searcher

    searcher = Searcher(arguments.embeddings, arguments.model)
    if query is None:
        from vlp.search.server import serve

        serve(searcher, arguments.host or HOST, PORT if arguments.port is None else arguments.port)
        return
    vector_D = query.vector(searcher)
    index = searcher.index(arguments.find)
    start = time.perf_counter()
    hits = searcher.find(vector_D, arguments.find, arguments.top)
    milliseconds = 1000 * (time.perf_counter() - start)
    if arguments.json:
        from vlp.search.show import write_results

        write_results(arguments.json, query.told(), arguments.find, hits)
    if arguments.json != "-":
        from vlp.search.show import show

        show(hits)
    if arguments.html:
        from vlp.search.page import write_page

        write_page(arguments.html, query, hits, searcher)
        print(arguments.html, file=sys.stderr)
    how = index.plan.described() if index.plan else "all compared"
    number = len(searcher.collection.of(arguments.find))
    print(f"{len(hits):,} of {number:,} {arguments.find} in {milliseconds:.1f} ms, {how}", file=sys.stderr)
    for text in filter(searcher.is_cut, query.texts):
        print(f"the model reads no more than {searcher.context} tokens of '{text[:60]}...'", file=sys.stderr)


def _query(arguments: argparse.Namespace) -> Query:
    from vlp.search.directions import WEIGHT
    from vlp.search.query import Query

    weight = WEIGHT if arguments.weight is None else arguments.weight
    if not math.isfinite(weight) or weight < 0:
        raise UserError(f"--weight {weight:g} must be a number from 0 on: to turn a direction swap its sides")
    query = Query(
        arguments.text,
        arguments.image,
        tuple(arguments.plus),
        tuple(arguments.minus),
        arguments.towards,
        arguments.away_from,
        weight,
    )
    query.check(weight_given=arguments.weight is not None)
    return query


def _check(arguments: argparse.Namespace) -> None:
    from data_tools.verify import check_output

    if not 1 <= arguments.top <= _MOST:
        raise UserError(f"--top {arguments.top} must be from 1 to {_MOST:,}")
    for name in ("host", "port"):
        if getattr(arguments, name) is not None and not arguments.serve:
            raise UserError(f"--{name} has no effect without --serve: add it, or leave --{name} away")
    if arguments.serve:
        asked = ("text", "image", "plus", "minus", "towards", "away_from", "weight", "json", "html")
        idle = next((name for name in asked if getattr(arguments, name) not in (None, [])), None)
        if idle is not None:
            shown = "a query" if idle == "text" else f"--{idle.replace('_', '-')}"
            raise UserError(f"{shown} has no effect with --serve: ask on the page")
    if arguments.json not in (None, "-"):
        check_output("--json", Path(arguments.json))
    check_output("--html", arguments.html)
