"""Memory of the loader while a million samples pass: main process and workers, every so many samples.

    python benchmarks/speed/memory.py [--samples 1000000] [--remote-samples 200000] [--json FILE]

Tiny pictures in plain tars, 2 workers. First from disk; then a shorter run from an HTTP server on this machine, with
reading ahead, captions and a filter from a layer. "resident" is what the system counts for a process, shared pages
included; "own" is what would be free if it ended. The slope is fitted to the second half, as the tables of the
shards in use are kept and fill up in the first.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import tempfile
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tiny_shards
import torch

from vlp.data.batches import DataOptions, TrainingData
from vlp.data.captions import CaptionSource
from vlp.data.index import open_shard
from vlp.data.layers import LayerWriter
from vlp.data.transforms import PictureFormat
from vlp.encoders.tokenizer import FastTokenizer

FORMAT = PictureFormat((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SAMPLES_PER_SHARD = 1000
MIB = 1 << 20


class RangeHandler(SimpleHTTPRequestHandler):
    """Files of a folder, whole or by one range, over connections that last."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        total = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = (int(wanted[1]), min(int(wanted[2] or total - 1) + 1, total)) if wanted else (0, total)
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(stop - start)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{total}"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _serve(folder: str, port: Any) -> None:
    os.chdir(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler)
    port.send(server.server_port)
    server.serve_forever()


def write_layer(folder: Path, shards: int) -> None:
    """A text for four samples in five, and a score for all, by which a tenth is filtered out."""
    writer = LayerWriter(None, "notes", {"tool": "memory benchmark"})
    generator = np.random.default_rng(0)
    for number in range(shards):
        shard, _ = open_shard(str(folder / f"{number:05d}.tar"))
        texts = [None if row % 5 == 0 else f"picture {row} of shard {number}, told again" for row in range(len(shard))]
        keys = [shard.key(row) for row in range(len(shard))]
        writer.write(shard, keys, {"text": texts, "score": generator.random(len(shard))})


def watch(data: TrainingData, samples: int, every: int, batch_size: int) -> dict[str, Any]:
    """Memory in MiB after every ``every`` samples, and how fast it grows."""
    points: list[dict[str, Any]] = []
    began, seen = time.perf_counter(), 0
    for batch in data.batches(0, -(-samples // batch_size)):
        seen += len(batch)
        if seen // every > (seen - len(batch)) // every:
            points.append({"samples": seen, **memory()})
            last = points[-1]
            print(
                f"  {seen:>10,} samples  {seen / (time.perf_counter() - began):>7,.0f}/s  resident: main "
                f"{last['resident'][0]:.1f}, workers {', '.join(f'{size:.1f}' for size in last['resident'][1:])} MiB"
            )
    return {"points": points, "slope": slope(points), "samples_per_second": seen / (time.perf_counter() - began)}


def memory() -> dict[str, list[float]]:
    """Of this process and then of its workers, in MiB."""
    workers = [child.pid for child in multiprocessing.active_children() if child.name != "server"]
    infos = [psutil.Process(pid).memory_full_info() for pid in (os.getpid(), *sorted(filter(None, workers)))]
    return {"resident": [info.rss / MIB for info in infos], "own": [info.uss / MIB for info in infos]}


def slope(points: list[dict[str, Any]]) -> dict[str, float]:
    """MiB of all processes together for each 100,000 samples of the second half."""
    later = points[len(points) // 2 :]
    if len(later) < 2:
        return {}
    at = [point["samples"] / 100_000 for point in later]
    return {kind: float(np.polyfit(at, [sum(point[kind]) for point in later], 1)[0]) for kind in ("resident", "own")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--samples", type=int, default=1_000_000, help="from disk (default: %(default)s)")
    add("--every", type=int, default=50_000, help="samples between two looks (default: %(default)s)")
    add("--remote-samples", type=int, default=200_000, help="from the server (default: %(default)s)")
    add("--remote-every", type=int, default=10_000, help="samples between two looks (default: %(default)s)")
    add("--batch-size", type=int, default=500, help="(default: %(default)s)")
    add("--workers", type=int, default=2, help="(default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size, workers, tokenizer = arguments.batch_size, arguments.workers, FastTokenizer()

    runs = {}
    with tempfile.TemporaryDirectory() as temporary:
        shards = -(-max(arguments.samples, arguments.remote_samples) // SAMPLES_PER_SHARD)
        folder = tiny_shards.write(Path(temporary) / "shards", shards, SAMPLES_PER_SHARD)
        print(f"from disk, {workers} workers")
        data = TrainingData(DataOptions(train=str(folder), workers=workers), FORMAT, tokenizer, size, seed=0)
        runs["disk"] = watch(data, arguments.samples, arguments.every, size)

        remote = -(-arguments.remote_samples // SAMPLES_PER_SHARD)
        write_layer(folder, remote)
        receiving, sending = multiprocessing.Pipe(duplex=False)
        server = multiprocessing.Process(target=_serve, args=(str(folder), sending), name="server", daemon=True)
        server.start()
        try:
            print(f"from HTTP with a layer, {workers} workers")
            options = DataOptions(
                train=f"http://127.0.0.1:{receiving.recv()}/{{00000..{remote - 1:05d}}}.tar",
                captions=[CaptionSource(source="layer.notes"), CaptionSource(source="txt")],
                filter="notes.score > 0.1",
                workers=workers,
            )
            data = TrainingData(options, FORMAT, tokenizer, size, seed=0)
            runs["http, layer"] = watch(data, arguments.remote_samples, arguments.remote_every, size)
        finally:
            server.kill()
            server.join()
    for name, run in runs.items():
        if run["slope"]:
            print(
                f"{name}: {run['slope']['resident']:+.2f} MiB resident, {run['slope']['own']:+.2f} MiB own for each "
                "100,000 samples of the second half, all processes together"
            )
    if arguments.json:
        result = {
            "runs": runs,
            "workers": workers,
            "batch_size": size,
            "samples_per_shard": SAMPLES_PER_SHARD,
            "versions": {name: importlib.metadata.version(name) for name in ("numpy", "pillow", "pyarrow", "torch")},
            "python": platform.python_version(),
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
