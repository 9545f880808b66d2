"""A whole SugarCrepe evaluation by vlp beside CLIP_benchmark's: one model, one set of files, one process, taking turns.

    python benchmarks/speed/sugarcrepe.py [--share 0.05] [--data DIR] [--model ViT-B-32] [--rounds 5] [--json FILE]

A turn is all seven files, from the directory to the accuracies; loading the model is not counted. CLIP_benchmark 1.6.2
runs what its command line runs (`pip install --no-deps clip-benchmark==1.6.2`): its data set, a DataLoader with four
workers, batches of 64 pairs and its evaluator, once in fp32 (`--no_amp`), as vlp does, and once as it comes, which is
in bfloat16. A ratio is its time / vlp's of one round.

The files are made: SugarCrepe's numbers of pairs (7,511), pictures (1,560, of 640x480), captions a picture and words,
or a ``--share`` of them all, since a full turn of CLIP_benchmark takes half an hour on two cores. ``--data`` takes
SugarCrepe's own seven files; its pictures are made where ``val2017/`` does not hold them. A model by its name alone
has random weights, which take as long as others.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import sugarcrepe_files
import torch
from sugarcrepe_files import SUITES, Suites
from torch.utils.data import DataLoader

from vlp.encoders import openclip
from vlp.encoders.two_tower import TwoTower
from vlp.evaluation.run import EvaluateOptions, find_task

PEERS = {"CLIP_benchmark, fp32": False, "CLIP_benchmark, as it comes": True}  # whether with automatic mixed precision


@dataclass(frozen=True)
class Turn:
    """``cpu_seconds`` are of this process and of the workers that it had."""

    seconds: float
    cpu_seconds: float
    accuracy: dict[str, float]


def write_model(reference: str, folder: Path) -> None:
    """The model as a directory that both load; one that is named without a tag has random weights."""
    if open_clip.get_model_config(reference):
        model = openclip.build(openclip.ModelOptions(name=reference), seed=0)
    else:
        model = openclip.load(reference)
    openclip.save_openclip_directory(model, folder)


def load_peer(weights: Path) -> tuple[Any, Any, Any]:
    """CLIP_benchmark's model, transform and tokenizer."""
    try:
        from clip_benchmark.models import load_clip
    except ModuleNotFoundError:
        sys.exit("no CLIP_benchmark: pip install --no-deps clip-benchmark==1.6.2")
    clip, transform, tokenizer = load_clip("open_clip", f"local-dir:{weights}", "", "", "cpu")
    return clip.eval(), transform, tokenizer


def ours(model: TwoTower, folder: Path) -> dict[str, float]:
    """As `vlp eval` does it."""
    metrics = find_task(folder).run(model, EvaluateOptions().batch_size).metrics
    return {suite: metrics[f"text_acc_{suite}"] for suite in SUITES}


def theirs(
    model: tuple[Any, Any, Any], folder: Path, amp: bool, batch_size: int, workers: int
) -> Iterator[tuple[str, float]]:
    """As `clip_benchmark eval` does it, one file after another."""
    from clip_benchmark.datasets.builder import build_dataset, get_dataset_collate_fn
    from clip_benchmark.metrics import image_caption_selection

    clip, transform, tokenizer = model
    for suite in SUITES:
        name = f"sugar_crepe/{suite}"
        dataset = build_dataset(name, root=str(folder), transform=transform, task="image_caption_selection")
        loader = DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=False,
            num_workers=workers,
            collate_fn=get_dataset_collate_fn(name),
        )
        with redirect_stderr(io.StringIO()):  # its progress
            metrics = image_caption_selection.evaluate(clip, loader, tokenizer, device="cpu", amp=amp)
        yield suite, metrics["text_acc"]


def timed(work: Callable[[], dict[str, float]]) -> Turn:
    clock, cpu = time.perf_counter(), sum(os.times()[:4])
    accuracy = work()
    return Turn(time.perf_counter() - clock, sum(os.times()[:4]) - cpu, accuracy)


def taking_turns(contenders: dict[str, Callable[[], dict[str, float]]], rounds: int) -> dict[str, list[Turn]]:
    """Every other round in the reverse order."""
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in contenders if number % 2 == 0 else reversed(contenders):
            turn = timed(contenders[name])
            turns[name].append(turn)
            print(f"{name:<30}{turn.seconds:>8.1f} s, {turn.cpu_seconds:.1f} s of CPU", flush=True)
    return turns


def spread(theirs: list[float], ours: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def differing_pairs(one: dict[str, float], other: dict[str, float], sizes: dict[str, int]) -> int:
    """By how many right answers the files differ, all together."""
    return sum(abs(round(one[suite] * size) - round(other[suite] * size)) for suite, size in sizes.items())


def summary(turns: dict[str, list[Turn]], sizes: dict[str, int]) -> dict[str, Any]:
    found = turns["vlp"]
    return {
        name: {
            "clock": spread([t.seconds for t in turns[name]], [t.seconds for t in found]),
            "cpu": spread([t.cpu_seconds for t in turns[name]], [t.cpu_seconds for t in found]),
            "differing_pairs": max(differing_pairs(t.accuracy, found[0].accuracy, sizes) for t in turns[name]),
        }
        for name in PEERS
    }


def figures_of(suites: Suites, model: TwoTower) -> dict[str, float]:
    """What a turn has to do."""
    pairs = [item for items in suites.values() for item in items.values()]
    texts = list(dict.fromkeys(item[kind] for item in pairs for kind in ("caption", "negative_caption")))
    ids_NL = model.tokenizer(texts)
    return {
        "pairs": len(pairs),
        "pictures": len({item["filename"] for item in pairs}),
        "texts": len(texts),
        "mean_ids": float(model.text_lengths(ids_NL).float().mean()),
        "context": ids_NL.shape[1],
        "threads": torch.get_num_threads(),
    }


def print_ratios(ratio: dict[str, Any]) -> None:
    for name, row in ratio.items():
        by_clock, of_cpu = (
            f"{row[kind]['median']:.2f} ({row[kind]['min']:.2f} to {row[kind]['max']:.2f})" for kind in ("clock", "cpu")
        )
        print(f"{name} / vlp: {by_clock}; of CPU {of_cpu}; {row['differing_pairs']} pairs judged otherwise")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--share", type=float, default=0.05, help="of SugarCrepe's pictures and their pairs (default: %(default)s)")
    add("--data", type=Path, metavar="DIR", help="SugarCrepe's seven JSON files, with val2017/ or without")
    add("--model", default="ViT-B-32", help="open_clip's name (random weights), or a MODEL (default: %(default)s)")
    add("--rounds", type=int, default=5, help="(default: %(default)s)")
    add("--batch-size", type=int, default=64, help="of CLIP_benchmark (default: its own, %(default)s)")
    add("--workers", type=int, default=4, help="of CLIP_benchmark (default: its own, %(default)s)")
    add("--threads", type=int, help="of torch (default: as many as there are cores)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    made = arguments.data is None
    suites = sugarcrepe_files.made(arguments.share) if made else sugarcrepe_files.read(arguments.data, arguments.share)
    pictures = None if made else arguments.data / "val2017"
    with tempfile.TemporaryDirectory() as temporary:
        folder, weights = Path(temporary) / "sugarcrepe", Path(temporary) / "model"
        sugarcrepe_files.write(folder, suites, pictures)
        write_model(arguments.model, weights)
        model, peer = openclip.load(str(weights)), load_peer(weights)
        figures = {"model": Path(arguments.model).name, **figures_of(suites, model)}
        print(
            f"{figures['pairs']:,} pairs of {figures['pictures']:,} pictures and {figures['texts']:,} texts of "
            f"{figures['mean_ids']:.1f} ids; {figures['model']}, {figures['threads']} threads",
            flush=True,
        )
        contenders: dict[str, Callable[[], dict[str, float]]] = {"vlp": lambda: ours(model, folder)}
        for name, amp in PEERS.items():
            contenders[name] = lambda amp=amp: dict(theirs(peer, folder, amp, arguments.batch_size, arguments.workers))
        turns = taking_turns(contenders, arguments.rounds)
    ratio = summary(turns, {suite: len(items) for suite, items in suites.items()})
    print_ratios(ratio)
    if arguments.json:
        result = {
            **figures,
            "made": made,
            "share": arguments.share,
            "ratio": ratio,
            "turns": {name: [asdict(turn) for turn in found] for name, found in turns.items()},
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("clip-benchmark", "open_clip_torch", "torch", "pillow")
            },
            "python": platform.python_version(),
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
