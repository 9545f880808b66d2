"""Recalls of given embeddings by vlp beside CLIP_benchmark's functions, on the same features, taking turns.

    python benchmarks/speed/retrieval.py [--repeats 5] [--limit 120] [--memory 50000 100000] [--json FILE]

1,000 pictures with five captions each, then 5,000 (COCO's size), of 512 numbers in fp32; one thread. vlp's turn gives
the ranks of both directions and from them all recalls; CLIP_benchmark 1.6.2's is what its `evaluate` does with
embeddings (`pip install --no-deps clip-benchmark==1.6.2`): the matrix of scores, that of the positives, and for each K
`batchify(recall_at_k, ...)` both ways in batches of 64, its command's default. After ``--limit`` seconds it is stopped.

Each measurement is a forked process of its own. Memory is what its high-water mark rises by above the features. Then
vlp alone with as many pictures as texts, of 64 numbers: memory beside the features is some numbers a row and a tile,
so it hardly grows with the set, while the matrix of scores would have 40 GB.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.bench._losses import in_child, spread
from vlp.evaluation import metrics

VLP, PEER = "vlp", "CLIP_benchmark"
RECALL_AT = (1, 5, 10)
CAPTIONS = 5  # of a picture
WIDTH, NARROW = 512, 64
BATCH = 64  # CLIP_benchmark's default, by which it cuts its matrix
MIB = 1 << 20
Recalls = dict[str, float]
Way = Callable[[Tensor, Tensor, Tensor], Recalls]


def ours(image_ND: Tensor, text_ND: Tensor, image_of_text: Tensor) -> Recalls:
    ranks = metrics.retrieval_ranks(image_ND, text_ND, image_of_text)
    return {
        f"{found}_retrieval_recall@{k}": of.recall(k)
        for k in RECALL_AT
        for found, of in (("image", ranks.text_to_image), ("text", ranks.image_to_text))
    }


def theirs(image_ND: Tensor, text_ND: Tensor, image_of_text: Tensor) -> Recalls:
    """The calls of CLIP_benchmark's `zeroshot_retrieval.evaluate` from the embeddings on."""
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    scores = text_ND @ image_ND.t()
    positives = torch.zeros_like(scores, dtype=torch.bool)
    positives[torch.arange(len(scores)), image_of_text.tolist()] = True
    found: Recalls = {}
    for k in RECALL_AT:
        for name, s, p in (("image", scores, positives), ("text", scores.T, positives.T)):
            recall = batchify(recall_at_k, s, p, BATCH, "cpu", k=k)
            found[f"{name}_retrieval_recall@{k}"] = (recall > 0).float().mean().item()
    return found


def features(images: int, captions: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, and captions that are nearer to their own than to others, so that recalls at 1 are around a half."""
    generator = torch.Generator().manual_seed(0)
    image_ND = F.normalize(torch.randn(images, width, generator=generator), dim=1)
    image_of_text = torch.arange(images).repeat_interleave(captions)
    noise_ND = torch.randn(images * captions, width, generator=generator).mul_(7.5 / width**0.5)
    return image_ND, F.normalize(noise_ND.add_(image_ND[image_of_text]), dim=1), image_of_text


def measure(way: Way, size: tuple[int, int, int], threads: int, limit: int) -> dict[str, Any]:
    """Seconds, memory and recalls of one turn in a process of its own; of one that is stopped only its seconds."""
    return in_child(_measure, way, size, threads, limit)


def _measure(way: Way, size: tuple[int, int, int], threads: int, limit: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    given = features(*size)
    way(*features(200, 2, size[2]))  # what libraries load at their first product
    before = psutil.Process().memory_info().rss
    clock, cpu = time.perf_counter(), time.process_time()
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(limit)  # 0: none
    try:
        recalls = way(*given)
    except TimeoutError:
        return {"stopped": time.perf_counter() - clock}
    signal.alarm(0)
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"clock": seconds, "cpu": cpu_seconds, "mib": max(0, peak - before) / MIB, "recalls": recalls}


def _stop(*_: object) -> None:
    raise TimeoutError


def compare(images: int, repeats: int, threads: int, limit: int) -> dict[str, Any]:
    """Both of them in turn; a peer that does not end is not asked again."""
    size = (images, CAPTIONS, WIDTH)
    turns: dict[str, list[dict[str, Any]]] = {VLP: [], PEER: []}
    stopped = None
    for repeat in range(repeats):
        for name in (VLP, PEER) if repeat % 2 else (PEER, VLP):
            if name == PEER and stopped is not None:
                continue
            turn = measure({VLP: ours, PEER: theirs}[name], size, threads, limit)
            if "stopped" in turn:
                stopped = turn["stopped"]
                print(f"{name:<16} stopped after {stopped:.0f} s", flush=True)
                continue
            turns[name].append(turn)
            print(f"{name:<16}{turn['clock']:>8.2f} s {turn['cpu']:>8.2f} CPU s {turn['mib']:>8.0f} MiB", flush=True)
    row: dict[str, Any] = {"images": images, "texts": images * CAPTIONS}
    for name, found in turns.items():
        if found:
            row[name] = {kind: statistics.median(turn[kind] for turn in found) for kind in ("clock", "cpu", "mib")}
            row[name]["recalls"] = found[0]["recalls"]
    if stopped is not None:
        row["stopped"] = stopped
    else:
        pairs = list(zip(turns[PEER], turns[VLP], strict=True))
        row["ratio"] = {
            kind: spread([their[kind] / max(our[kind], 1e-9) for their, our in pairs])
            for kind in ("clock", "cpu", "mib")
        }
        row["difference"] = max(
            abs(row[PEER]["recalls"][name] - row[VLP]["recalls"][name]) for name in row[VLP]["recalls"]
        )
    return row


def print_row(row: dict[str, Any]) -> None:
    about = f"{row['images']:,} x {row['texts']:,}"
    if "ratio" not in row:
        print(f"{about}: vlp {row[VLP]['clock']:.2f} s; {PEER} did not end in {row['stopped']:.0f} s")
        return
    shown = ", ".join(f"{kind} {of['median']:.1f}" for kind, of in row["ratio"].items())
    print(f"{about}: {PEER} / vlp: {shown}; recalls differ by {row['difference']:.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=int, nargs=2, default=[1_000, 5_000], help="of both sets (default: 1000 5000)")
    add("--repeats", type=int, default=5, help="of the first; the second has one (default: %(default)s)")
    add("--limit", type=int, default=120, help="seconds a turn may take (default: %(default)s)")
    add("--memory", type=int, nargs="*", default=[50_000, 100_000], metavar="N", help="N x N (default: 50000 100000)")
    add("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    try:
        importlib.metadata.version("clip-benchmark")
    except importlib.metadata.PackageNotFoundError:
        sys.exit("no CLIP_benchmark: pip install --no-deps clip-benchmark==1.6.2")
    small, large = arguments.images
    rows = []
    for images, repeats in ((small, arguments.repeats), (large, 1)):
        rows.append(compare(images, repeats, arguments.threads, arguments.limit))
        print_row(rows[-1])
    alone = []
    for number in arguments.memory:
        turn = measure(ours, (number, 1, NARROW), arguments.threads, 0)
        alone.append({"number": number, **{kind: turn[kind] for kind in ("clock", "cpu", "mib")}})
        print(f"{number:,} x {number:,}: vlp {turn['clock']:.1f} s, {turn['mib']:.0f} MiB", flush=True)
    if arguments.json:
        result = {
            "rows": rows,
            "alone": alone,
            "width": {"rows": WIDTH, "alone": NARROW},
            "threads": arguments.threads,
            "versions": {name: importlib.metadata.version(name) for name in ("clip-benchmark", "torch")},
            "python": platform.python_version(),
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
