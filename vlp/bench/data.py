"""Samples a second of a recipe's data, where the time goes, and the ratio to open_clip's own loader.

The whole loader is timed, from the tars to a batch of tensors in the main process, with no model behind it.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from vlp.bench import _openclip_loader
from vlp.bench._rounds import Contender, ratio, rounds, summary
from vlp.data.bad_samples import BadSamples
from vlp.data.batches import TrainingData
from vlp.data.shards import find_shards
from vlp.encoders.openclip import outline
from vlp.objectives.base import hard_texts, text_views
from vlp.recipe import Recipe

_LARGEST_BATCH = 256  # the rate hardly depends on it, and a batch made for many GPUs would take a minute
_ENDLESS = 10**9
_PEER = "open_clip"
_PACKAGES = ("open_clip_torch", "webdataset", "torch", "torchvision", "pillow", "simplejpeg")


def run(recipe: Recipe, seconds: float = 3, repeats: int = 5) -> dict[str, Any]:
    """Measure and print; returns all figures.

    Args:
        seconds: least length of each measurement.
        repeats: rounds in which the loaders take turns.

    Raises:
        UserError: what `train` would say of its data.
    """
    torch.set_num_threads(1)  # as in the workers of a loader
    clock = Clock()
    model = outline(recipe.model, recipe.starts())
    rows = min(recipe.train.global_batch_size, _LARGEST_BATCH)
    tokenizer = clock.timed("tokenizer", model.tokenizer)
    views, hard = text_views(recipe.objectives), hard_texts(recipe.objectives)
    data = TrainingData(
        recipe.data, model.picture_format, tokenizer, rows, recipe.seed, text_views=views, hard_texts=hard
    )
    neighbours = " and as many neighbours, which count as samples" if recipe.data.neighbours else ""
    print(
        f"{recipe.name}: {data.num_samples:,} samples in {data.num_shards:,} shards, pictures of "
        f"{model.picture_format.size[0]} x {model.picture_format.size[1]}, batches of {rows}{neighbours}, one rank"
    )
    bad = BadSamples(1, 0)
    contenders = {
        workers_name(workers): Contender(partial(_ours, data, workers, bad), workers)
        for workers in sorted({0, 1, recipe.data.workers})
    }
    paths = [path for source in recipe.data.sources for path in find_shards(source.shards)]
    if no_peer := _openclip_loader.why_not(data.columns, paths):
        print(no_peer)
    else:
        preprocess = _openclip_loader.transform(model.picture_format, recipe.data.augment)
        start = partial(_theirs, paths, preprocess, model.tokenizer, rows, recipe.data.workers, recipe.seed)
        contenders[_PEER] = Contender(start, recipe.data.workers)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("loaders in turn", total=repeats * len(contenders))
        windows = rounds(contenders, repeats, seconds, lambda name: bar.update(task, description=name, advance=1))
    figures: dict[str, Any] = {
        "recipe": recipe.name,
        "samples": data.num_samples,
        "shards": data.num_shards,
        "picture_size": model.picture_format.size,
        "batch_size": rows,
        "workers": recipe.data.workers,
        "loaders": {name: summary(found) for name, found in windows.items()},
        "stages": stages(data, clock, seconds),
        "bad": {**bad.state(), "fraction": bad.fraction},
        "ratio": None if no_peer else ratio(windows[_PEER], windows[workers_name(recipe.data.workers)]),
        "no_ratio": no_peer,
        "not_done_by_open_clip": _openclip_loader.not_done(recipe.data.augment),
        "windows": {name: [vars(w) for w in found] for name, found in windows.items()},
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
    }
    loaders = figures["loaders"]
    figures["hand_over_cpu_microseconds"] = 1000 * (
        loaders[workers_name(1)]["cpu_milliseconds_per_sample"]
        - loaders[workers_name(0)]["cpu_milliseconds_per_sample"]
    )
    _print(figures, bad)
    return figures


def workers_name(workers: int) -> str:
    return f"{workers} worker{'' if workers == 1 else 's'}"


def _ours(data: TrainingData, workers: int, bad: BadSamples) -> Iterator[int]:
    data.workers = workers
    for batch in data.batches(0, _ENDLESS):
        bad.add(batch.skipped, seen=len(batch))
        yield len(batch)


def _theirs(*arguments: Any) -> Iterator[int]:
    for images, _ in _openclip_loader.batches(*arguments):
        yield len(images)


class Clock:
    """Adds up the time that functions take, by name: by the clock and of the processor."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu_seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return partial(self._call, name, function)

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        started, cpu = time.perf_counter(), time.process_time()
        try:
            return function(*arguments)
        finally:
            self.cpu_seconds[name] += time.process_time() - cpu
            self.seconds[name] += time.perf_counter() - started


def stages(data: TrainingData, clock: Clock, seconds: float) -> dict[str, dict[str, float]]:
    """Microseconds a sample of each part of the loader when it all happens in this process.

    ``clock`` times the tokenizer of ``data`` already; the other parts of its samples get it here.
    """
    samples = data._samples
    for name, part in (("read", "_read"), ("pictures", "_transform"), ("use", "_use")):
        setattr(samples, part, clock.timed(name, getattr(samples, part)))
    data.workers = 0
    batches = data.batches(0, _ENDLESS)
    next(batches)
    clock.seconds.clear()
    clock.cpu_seconds.clear()
    started, cpu, count = time.perf_counter(), time.process_time(), 0
    while not count or time.perf_counter() - started < seconds:
        count += len(next(batches))
    totals = time.perf_counter() - started, time.process_time() - cpu
    batches.close()  # type: ignore[attr-defined]

    def parts(spent: dict[str, float], total: float) -> dict[str, float]:
        named = {
            "read": spent["read"],
            "pictures": spent["pictures"],
            "captions": spent["use"] - spent["pictures"],
            "tokenizer": spent["tokenizer"],
            "rest": total - spent["read"] - spent["use"] - spent["tokenizer"],
            "all": total,
        }
        return {name: 1e6 * value / count for name, value in named.items()}

    by_clock, of_cpu = parts(clock.seconds, totals[0]), parts(clock.cpu_seconds, totals[1])
    return {name: {"microseconds": by_clock[name], "cpu_microseconds": of_cpu[name]} for name in by_clock}


_MEANING = {
    "read": "bytes of the members",
    "pictures": "decoding, crop, resizing, augmentation",
    "captions": "choice of the caption, random draws",
    "tokenizer": "token ids",
    "rest": "order, look-up, memory of the batch",
    "all": "",
}


def _print(figures: dict[str, Any], bad: BadSamples) -> None:
    print(f"\n{'tar to batch':<22}{'samples/s':>12}{'ms a sample':>14}{'CPU ms':>10}")
    for name, row in figures["loaders"].items():
        label = f"{name}, {workers_name(figures['workers'])}" if name == _PEER else name
        print(
            f"{label:<22}{row['samples_per_second']:>12,.0f}{row['milliseconds_per_sample']:>14.3f}"
            f"{row['cpu_milliseconds_per_sample']:>10.3f}"
        )
    if figures["ratio"]:
        clock, cpu = (
            f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})" for found in figures["ratio"].values()
        )
        without = ", ".join(figures["not_done_by_open_clip"])
        work = f", though it does not {without}" if without else ""
        print(f"open_clip's time over ours{work}: {clock} by the clock, {cpu} of CPU")
    print(f"\n{'in one process':<22}{'µs a sample':>12}{'CPU µs':>14}")
    for name, row in figures["stages"].items():
        print(f"{name:<22}{row['microseconds']:>12,.1f}{row['cpu_microseconds']:>14,.1f}  {_MEANING[name]}".rstrip())
    print(f"{'hand-over':<22}{'':>12}{figures['hand_over_cpu_microseconds']:>14,.1f}  what a worker process adds")
    print(f"\nbad samples: {bad.total:,} of {bad.seen:,} ({bad.fraction:.2%})")
    for line in bad.summary():
        print(f"  {line}")
