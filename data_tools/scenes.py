"""Draw the controlled world: coloured shapes in known relations, as training shards and evaluation sets."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from data_tools._scenes_options import ScenesOptions
from data_tools._scenes_world import DUPLICATE_POOL, TEXTURES, World, generator

DEFAULT_MARKS = 64
OUT_HELP = (
    "new directory: OUT/train, OUT/scenes.json and OUT/eval/*: retrieval, colour, shape; swaps (true against swapped "
    "caption: by chance 50%%, and also for who reads the captions only); twins (Winoground: by chance text and image "
    "25%%, group 17%%, from the captions only 0%%); order (true caption against its words shuffled: by chance 50%%, "
    "from the captions only 100%%); captions (as retrieval, or for captioners: vlp eval MODEL --on "
    "captioning:OUT/eval/captions)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    d = {field.name: field.default for field in fields(ScenesOptions)}
    add = parser.add_argument
    add("out", metavar="OUT", help=OUT_HELP)
    add("--num-train", type=int, default=d["num_train"], metavar="N", help="training pictures (%(default)s)")
    add(
        "--num-eval",
        type=int,
        default=d["num_eval"],
        metavar="N",
        help="items an evaluation set: pictures, pairs or twins; an even number (%(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=d["seed"],
        metavar="S",
        help="same seed and options, same bytes (%(default)s)",
    )
    add(
        "--image-size",
        type=int,
        default=d["image_size"],
        metavar="PX",
        help="side of the square pictures (%(default)s)",
    )
    add(
        "--objects",
        default=d["objects"],
        metavar="N[-M]",
        help="objects a scene, 1 to 3; three want --image-size 64 (%(default)s)",
    )
    add(
        "--textures",
        default="plain",
        metavar="A,B",
        help=f"of {', '.join(TEXTURES)}; captions omit plain; others want --image-size 64 (%(default)s)",
    )
    add(
        "--grammar",
        default=d["grammar"],
        metavar="A|B|both",
        help="phrasing of the training captions (%(default)s)",
    )
    add(
        "--eval-grammar",
        default=d["eval_grammar"],
        metavar="A|B",
        help="phrasing of the evaluation; where training has another one, the same pictures also come in "
        "that, as eval/NAME_grammar_A or _B (%(default)s)",
    )
    add(
        "--caption-noise",
        type=float,
        default=0.0,
        metavar="P",
        help="share of captions taken from another picture",
    )
    add(
        "--boilerplate",
        type=float,
        default=0.0,
        metavar="P",
        help="share of captions that are one of 5 fixed strings",
    )
    add(
        "--duplicates",
        type=float,
        default=0.0,
        metavar="P",
        help=f"share of pictures that show one of the same {DUPLICATE_POOL} scenes",
    )
    add(
        "--shortcut",
        type=int,
        nargs="?",
        default=0,
        const=DEFAULT_MARKS,
        metavar="N",
        help=f"plant one of N marks ({DEFAULT_MARKS}) in a corner, which the training caption names",
    )
    add(
        "--long-tail",
        type=float,
        default=0.0,
        metavar="E",
        help="Zipf exponent of shapes and colours in training",
    )
    add(
        "--hold-out",
        action="append",
        default=[],
        metavar="WORDS",
        help="combination kept out of training: 'red circle', 'circle left of square', ...; may be repeated",
    )
    add(
        "--counting",
        type=float,
        default=0.0,
        metavar="P",
        help="share of training pictures that show one to four equal objects, which the caption counts; also "
        "writes eval/counting (by chance and from the captions only 50%%)",
    )
    add(
        "--negation",
        type=float,
        default=0.0,
        metavar="P",
        help="share of training captions that also say what is not there ('a red circle and no blue square'); "
        "also writes eval/negation (by chance and from the captions only 50%%)",
    )
    add("--samples-per-shard", type=int, default=d["samples_per_shard"], metavar="N", help="(%(default)s)")


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import Progress

    values = {field.name: getattr(arguments, field.name) for field in fields(ScenesOptions)}
    values["textures"] = tuple(word.strip() for word in arguments.textures.split(",") if word.strip())
    values["hold_out"] = tuple(arguments.hold_out)
    options = ScenesOptions(**values)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("drawing scenes")
        summary = write_scenes(options, lambda done, total: bar.update(task, completed=done, total=total))
    print(f"wrote {options.out}")
    noise = ", ".join(f"{count:,} {kind}" for kind, count in summary["captions"].items())
    print(f"  {'train':<36} {summary['num_train']:>9,}  (captions: {noise})")
    for name, count in summary["eval"].items():
        print(f"  {'eval/' + name:<36} {count:>9,}")


def write_scenes(options: ScenesOptions, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Write ``options.out`` and return what its ``scenes.json`` says: options, counts and version.

    ``progress(done, total)`` is called for every picture. ``scenes.json`` comes last, when all is there.

    Raises:
        UserError: the directory is not empty, the options leave too few scenes, or the number of items is odd.
    """
    import vlp
    from data_tools._scenes_evaluation import Evaluation
    from vlp.data.write import new_directory
    from vlp.types import UserError

    if options.num_eval % 2:  # half a twin would tell a scorer that never looks at the picture more than chance
        raise UserError(
            f"--num-eval {options.num_eval} is odd, but pairs come in twins, in which each caption is once the true "
            f"one: give {options.num_eval + 1}"
        )
    world = options.world()
    random = generator(options.seed, "scene", 0)
    world.training_scene(random)  # refuses before anything is written
    if options.counting:
        world.training_count(random)
        world.evaluation_count(random)
    out = new_directory(options.out)
    phrasings = {"": options.eval_grammar}
    if options.eval_grammar not in options.grammars:
        phrasings |= {f"_grammar_{name}": name for name in options.grammars}

    total = done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    sizes = (options.num_eval, options.image_size, options.shortcut, options.counting, options.negation > 0)
    evaluations = [
        Evaluation(world, out / "eval", grammar, suffix, *sizes, tick) for suffix, grammar in phrasings.items()
    ]
    total = options.num_train + sum(evaluation.num_pictures for evaluation in evaluations)
    evaluation_counts: dict[str, int] = {}
    for evaluation in evaluations:
        evaluation_counts |= evaluation.write()
    captions = _write_training(options, world, out / "train", tick)
    if progress is not None:
        progress(total, total)

    summary = {
        "version": vlp.__version__,
        "options": {k: v for k, v in asdict(options).items() if k != "out"},
        "num_train": options.num_train,
        "captions": dict(sorted(captions.items())),
        "eval": evaluation_counts,
    }
    (out / "scenes.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _write_training(options: ScenesOptions, world: World, out: Path, tick: Callable[[], None]) -> Counter[str]:
    """Write the shards; returns the number of captions by what was done to them."""
    from data_tools._scenes_training import training_sample
    from vlp.data.write import ShardWriter

    captions: Counter[str] = Counter()
    with ShardWriter(out, options.samples_per_shard) as shards:
        for index in range(options.num_train):
            image, caption, factors = training_sample(options, world, index)
            shards.write(image, "png", caption, **factors)
            captions[factors["noise"] or "clean"] += 1
            tick()
    return captions
