"""One model out of several: between a base and what it was tuned to (WiSE-FT), or a mean of models.

vlp merge OUT TUNED --base BASE --alpha 0.5        half of the way from BASE to TUNED
vlp merge OUT MODEL MODEL MODEL                    the mean of models tuned from one start (a soup)
vlp merge OUT MODEL MODEL --base BASE --method delta --gamma 1
vlp merge OUT TUNED --base BASE --alpha 0,0.25,0.5,0.75,1 --on GAINED KNOWN
                                                   no model, but a table and a plot of the way
"""

from __future__ import annotations

import argparse

from vlp.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", metavar="OUT", help="directory to write, a new one")
    add("models", nargs="+", metavar="MODEL", help="run, checkpoint, export or other MODEL; all of one architecture")
    add("--base", metavar="MODEL", help="where they were tuned from")
    add("--method", choices=["mean", "wise-ft", "delta"], help="default: wise-ft with --base, else mean")
    add(
        "--alpha", metavar="A", help="share of the way from the base (default: 0.5 for wise-ft, else 1); A,A,... to try"
    )
    add("--weights", metavar="W,W", help="of the models, in their order (default: equal)")
    add(
        "--gamma", type=float, metavar="G", help="of delta: power of how far a tensor moved (default: 1; 0 is the mean)"
    )
    add(
        "--on",
        nargs="+",
        metavar="SET",
        help="evaluation sets for several --alpha: what is gained first, then what was known",
    )


def run(arguments: argparse.Namespace) -> None:
    from vlp.merge import Merging, Method, merge

    method: Method = arguments.method or ("wise-ft" if arguments.base else "mean")
    if arguments.gamma is not None and method != "delta":
        raise UserError("--gamma has no effect without --method delta: remove it")
    alphas = _numbers("--alpha", arguments.alpha) or ((0.5,) if method == "wise-ft" else (1.0,))
    weights = _numbers("--weights", arguments.weights)
    mergings = [
        Merging(method, alpha, weights, 1.0 if arguments.gamma is None else arguments.gamma) for alpha in alphas
    ]
    if len(alphas) == 1 and arguments.on:
        raise UserError("--on compares several shares: give --alpha 0,0.25,0.5,0.75,1, or evaluate OUT by vlp eval")
    if len(alphas) > 1:
        if not arguments.on:
            raise UserError("several --alpha are compared on evaluation sets: name them by --on")
        from vlp.merge_sweep import sweep

        print(sweep(arguments.out, arguments.models, arguments.base, mergings, arguments.on))
        return
    record = merge(arguments.out, arguments.models, arguments.base, mergings[0])
    for note in record["notes"]:
        print(f"note: {note}")
    print(f"wrote {arguments.out}; compare it by: vlp eval {arguments.out} --on SET")


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(number) for number in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text}: write numbers with commas between them, such as 0,0.5,1") from None
