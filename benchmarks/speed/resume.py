"""How long a run takes to its first batch when it starts, and when it goes on deep in an epoch.

    python benchmarks/speed/resume.py [--shards 200] [--position 0 1000000 ...] [--repeats 5] [--json FILE]

Two million tiny samples in plain tars. Each measurement is a process of its own, from the construction of
``TrainingData`` to the first batch in the main process, imports not counted: with an index, and at the last place also
with sample counts alone (webdataset's ``sizes.json``) and with nothing, where all tars are scanned. The global batch
there must be the same, to the last pixel, in all these ways, for any number of ranks and workers, and when the stream
came there from three batches before.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import tiny_shards
import torch

from vlp.data.batches import DataOptions, TrainingData
from vlp.data.transforms import PictureFormat
from vlp.encoders.tokenizer import FastTokenizer

FORMAT = PictureFormat((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
WORLDS = (1, 2, 4)  # ranks
WORKERS = (0, 1, 2)
_BEFORE = 3


def first_batch(
    folder: Path, start: int, step: int, batch_size: int, rank: int = 0, world: int = 1, workers: int = 0
) -> tuple[dict[str, float], list[bytes]]:
    """Seconds to construct the data and to its first batch, that of ``start``; digests of the rows of ``step``."""
    tokenizer = FastTokenizer()
    options = DataOptions(train=str(folder), workers=workers)
    began = time.perf_counter()
    data = TrainingData(options, FORMAT, tokenizer, batch_size, seed=0, rank=rank, world=world)
    constructed = time.perf_counter()
    batches = data.batches(start, step + max(1, workers))
    batch = next(batches)
    arrived = time.perf_counter()
    for _ in range(step - start):
        batch = next(batches)
    batches.close()  # type: ignore[attr-defined]
    rows = zip(batch.keys, batch.captions, batch.text_NL, batch.image_NCHW, strict=True)
    digests = [
        hashlib.blake2b(repr((key, caption)).encode() + ids.numpy().tobytes() + image.numpy().tobytes()).digest()
        for key, caption, ids, image in rows
    ]
    return {"construct": constructed - began, "first_batch": arrived - constructed, "all": arrived - began}, digests


def alone(*arguments: Any, **options: Any) -> tuple[dict[str, float], list[bytes]]:
    """`first_batch` in a process that has done nothing else; it is forked, so that imports are there."""
    context = multiprocessing.get_context("fork")
    reading, writing = context.Pipe(duplex=False)

    def work() -> None:
        writing.send(first_batch(*arguments, **options))

    process = context.Process(target=work)
    process.start()
    writing.close()
    found = reading.recv()
    process.join()
    return found


def global_batch(folder: Path, start: int, step: int, batch_size: int, world: int, workers: int) -> str:
    """Digest of the global batch of ``step``, its rows put together from all ranks."""
    return digest([alone(folder, start, step, batch_size, rank, world, workers)[1] for rank in range(world)])


def digest(ranks: list[list[bytes]]) -> str:
    return hashlib.blake2b(
        b"".join(row for rows in zip(*ranks, strict=True) for row in rows), digest_size=8
    ).hexdigest()


def timed(folder: Path, step: int, batch_size: int, workers: int, repeats: int) -> tuple[dict[str, Any], str]:
    """Medians over processes, and the digest of the batch."""
    found = [alone(folder, step, step, batch_size, workers=workers) for _ in range(repeats)]
    times = [seconds for seconds, _ in found]
    row: dict[str, Any] = {part: statistics.median(seconds[part] for seconds in times) for part in times[0]}
    row |= {"min": min(t["all"] for t in times), "max": max(t["all"] for t in times), "repeats": repeats}
    return row, digest([found[-1][1]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shards", type=int, default=200, help="(default: %(default)s)")
    add("--samples-per-shard", type=int, default=10_000, help="(default: %(default)s)")
    add("--position", type=int, nargs="+", default=[0, 1_000_000, 1_990_000], help="samples (default: %(default)s)")
    add("--batch-size", type=int, default=256, help="(default: %(default)s)")
    add("--repeats", type=int, default=5, help="processes of each kind (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    pa.array([0]).to_numpy()  # an import as well: of pandas, where that is installed

    size, steps = arguments.batch_size, [-(-position // arguments.batch_size) for position in arguments.position]
    with tempfile.TemporaryDirectory() as temporary:
        indexed = tiny_shards.write(Path(temporary) / "indexed", arguments.shards, arguments.samples_per_shard)
        counted = tiny_shards.without_index(indexed, Path(temporary) / "counted", counted=True)
        bare = tiny_shards.without_index(indexed, Path(temporary) / "bare", counted=False)
        cases = [
            *((f"index, {workers} workers", indexed, workers, arguments.repeats, steps) for workers in WORKERS),
            ("counts, no index", counted, 0, 1, steps[-1:]),
            ("scan", bare, 0, 1, steps[-1:]),
        ]
        rows: dict[str, dict[int, Any]] = {}
        digests = {}
        for name, folder, workers, repeats, places in cases:
            rows[name] = {}
            for step in places:
                row, digests[name] = timed(folder, step, size, workers, repeats)
                rows[name][step * size] = row
                print(
                    f"{name:<18} at sample {step * size:>10,}: {row['all']:6.2f} s "
                    f"({row['min']:.2f}-{row['max']:.2f}), of which construction {row['construct']:.2f} s"
                )
        step = steps[-1]
        for world in WORLDS[1:]:
            for workers in WORKERS:
                name = f"index, {world} ranks, {workers} workers"
                digests[name] = global_batch(indexed, step, step, size, world, workers)
        digests["index, from three batches before"] = global_batch(indexed, max(0, step - _BEFORE), step, size, 1, 0)
    same = len(set(digests.values())) == 1
    print(
        f"the batch at sample {step * size:,} is {'the same in all' if same else 'NOT the same in'} {len(digests)} ways"
    )
    if arguments.json:
        result = {
            "samples": arguments.shards * arguments.samples_per_shard,
            "shards": arguments.shards,
            "batch_size": size,
            "seconds": rows,
            "digests": digests,
            "same": same,
            "versions": {name: importlib.metadata.version(name) for name in ("numpy", "pyarrow", "torch")},
            "python": platform.python_version(),
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
