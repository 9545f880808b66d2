"""Zero-shot evaluation of a model on evaluation sets."""

from __future__ import annotations

import argparse
import os

from vlp.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help="run, checkpoint or exported directory, NAME:TAG of open_clip, hf-hub:, local-dir:")
    add(
        "--on",
        nargs="+",
        required=True,
        metavar="DIR",
        help="evaluation sets: directories, or a file where one holds several; captioning:DIR has captions written",
    )
    add("--scorer", metavar="MODEL", help="whose CLIPScore captions get (default: the captioner's own)")
    add("--beams", type=int, metavar="N", help="of a search for captions (default: 3)")
    add("--output", metavar="FILE", help="JSON in CLIP_benchmark's shape; {dataset} in it: a file a set")
    add("--batch-size", type=int, default=256, help="pictures at once (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    from vlp import distributed
    from vlp.encoders.openclip import load
    from vlp.evaluation import run as evaluation
    from vlp.flags import checked

    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size} must be at least 1")
    told = {name: getattr(arguments, name) for name in ("beams", "scorer") if getattr(arguments, name) is not None}
    captioning = checked(evaluation.CaptioningOptions, told) if told else None
    tasks = evaluation.open_tasks(checked(evaluation.EvaluateOptions, {"sets": arguments.on, "captioning": captioning}))
    model = load(arguments.model, distributed.device())
    name, _, tag = arguments.model.partition(":")
    is_tagged = tag and name not in ("hf-hub", "local-dir") and not os.path.exists(arguments.model)
    name, pretrained = (name, tag) if is_tagged else (arguments.model, model.weights)
    for task in tasks:
        task.check(model)
    results = evaluation.run_tasks(model, tasks, arguments.batch_size, name, pretrained)
    print(evaluation.format_table(results))
    if arguments.output:
        evaluation.write_results(results, arguments.output)
