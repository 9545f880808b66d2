"""What drawing captions from a layer of rewrites costs the loader: the same shards with and without, taking turns.

    python benchmarks/speed/layer.py [--rounds 7] [--batches 8] [--json FILE]

Captions come from the ``.txt``, or evenly from it and five rewrites in a layer (`each: true`). Photos of 341x256 at
224 x 224, and drawings of 64x64 as they are, of which a sample takes so little that a caption weighs most. Both loaders
run in this process, one thread, batch by batch in turn after an epoch to warm up. A ratio is the CPU time with the
layer over that without, in a round of batches. "draw" is the CPU time of a draw alone, of a layer that is in memory.
Reading the layer's files falls into the warm-up and is told apart: a worker does it once for each shard it comes to.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from loader import write_shards
from pictures import MEAN, STD
from tokenizer import made_captions

from vlp.data.batches import DataOptions, TrainingData
from vlp.data.captions import CaptionLayers, CaptionSource, draw
from vlp.data.index import open_shard
from vlp.data.layers import LayerWriter
from vlp.data.shards import find_shards
from vlp.data.stream import sample_generator
from vlp.data.transforms import PictureFormat
from vlp.encoders.tokenizer import FastTokenizer
from vlp.types import Batch

SIZES = {"341x256": 224, "64x64": 64}  # of the pictures, and of the views
REWRITES = 5
LAYER = "rewrites"
SOURCES = {
    "txt": [CaptionSource(source="txt")],
    "layer": [CaptionSource(source="txt"), CaptionSource(source=f"layer.{LAYER}", each=True)],
}
_ENDLESS = 10**9


def write_layer(folder: Path) -> None:
    """``REWRITES`` for each sample, of the length of captions."""
    writer = LayerWriter(None, LAYER, {"tool": "benchmarks/speed"})
    for number, path in enumerate(find_shards(str(folder))):
        shard, _ = open_shard(path)
        texts = made_captions(len(shard) * REWRITES, seed=1 + number)
        keys = [shard.key(row) for row in range(len(shard))]
        columns = {"rewrites": [texts[row * REWRITES :][:REWRITES] for row in range(len(shard))]}
        writer.write(shard, keys, columns)


def batches(folder: Path, sources: Sequence[CaptionSource], side: int, batch_size: int) -> Iterator[Batch]:
    options = DataOptions(train=str(folder), captions=list(sources), workers=0)
    data = TrainingData(options, PictureFormat((side, side), MEAN, STD), FastTokenizer(), batch_size, seed=0)
    return data.batches(0, _ENDLESS)


def draw_microseconds(folder: Path, sources: Sequence[CaptionSource], repeats: int = 50) -> float:
    """Of one draw with what it reads of the layer, in this process."""
    path = find_shards(str(folder))[0]
    shard, _ = open_shard(path)
    layers = CaptionLayers(sources, [path])
    members = {"txt": b"a caption of some words, as they are"}
    generators = [sample_generator(0, row, 0) for row in range(len(shard))]
    found = []
    for _ in range(repeats):
        started = time.process_time()
        for row, generator in enumerate(generators):
            draw(members, sources, generator, layers.of(shard, row))
        found.append(time.process_time() - started)
    return 1e6 * min(found) / len(shard)


def file_microseconds(folder: Path, repeats: int = 20) -> float:
    """Of reading a layer's file, for each sample of its shard."""
    path = find_shards(str(folder))[0]
    shard, _ = open_shard(path)
    found = []
    for _ in range(repeats):
        layers = CaptionLayers(SOURCES["layer"], [path])
        started = time.process_time()
        layers.of(shard, 0)
        found.append(time.process_time() - started)
    return 1e6 * statistics.median(found) / len(shard)


def compare(folder: Path, side: int, samples: int, batch_size: int, rounds: int, turns: int) -> dict[str, Any]:
    """CPU microseconds a sample of both and the ratio with its spread over ``rounds`` of ``turns`` batches each."""
    streams = {name: batches(folder, sources, side, batch_size) for name, sources in SOURCES.items()}
    for stream in streams.values():
        for _ in range(-(-samples // batch_size)):
            next(stream)
    spent: dict[str, list[float]] = {name: [0.0] * rounds for name in streams}
    for number in range(rounds):
        for turn in range(turns):
            for name in streams if turn % 2 else reversed(streams):
                started = time.process_time()
                next(streams[name])
                spent[name][number] += 1e6 * (time.process_time() - started) / turns / batch_size
    ratios = [with_layer / without for with_layer, without in zip(spent["layer"], spent["txt"], strict=True)]
    return {
        "cpu_microseconds": {name: statistics.median(found) for name, found in spent.items()},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "draw_microseconds": {name: draw_microseconds(folder, sources) for name, sources in SOURCES.items()},
        "file_microseconds": file_microseconds(folder),
        "rounds": spent,
    }


def print_row(name: str, row: dict[str, Any]) -> None:
    for source, microseconds in row["cpu_microseconds"].items():
        draw = row["draw_microseconds"][source]
        print(f"{name:<10}{source:<8}{microseconds:>8,.0f} CPU µs a sample, {draw:.1f} of them the draw")
    ratio = row["ratio"]
    print(
        f"{'':<10}layer / txt {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f}); "
        f"besides {row['file_microseconds']:.1f} µs a sample for reading its file once",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--samples", type=int, default=1200, help="of each made set (default: %(default)s)")
    add("--pictures", type=int, default=100, help="different pictures among them (default: %(default)s)")
    add("--batch-size", type=int, default=128, help="(default: %(default)s)")
    add("--rounds", type=int, default=7, help="(default: %(default)s)")
    add("--batches", type=int, default=8, help="of each in a round (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name, side in SIZES.items():
        width, height = map(int, name.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            made = write_shards(Path(folder) / "train", (width, height), arguments.samples, arguments.pictures)
            write_layer(made)
            rows[name] = compare(
                made, side, arguments.samples, arguments.batch_size, arguments.rounds, arguments.batches
            )
        print_row(name, rows[name])
    if arguments.json:
        result = {
            "rows": rows,
            "samples": arguments.samples,
            "rewrites": REWRITES,
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "pyarrow", "numpy")},
            "python": platform.python_version(),
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
