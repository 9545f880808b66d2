"""CPU seconds and memory of vlp's large-batch losses with backward, beside open_clip's ClipLoss and SigLipLoss.

    python benchmarks/speed/loss.py [--softmax 8192 16384] [--sigmoid 8192] [--width 512] [--repeats 5] [--json FILE]

fp32, one process, one thread. Each measurement is a forked child of its own, turn by turn; memory is what its
high-water mark rises by above the inputs. A ratio is theirs / ours of one repeat. ``--alone`` measures vlp's
softmax loss at one more size, where open_clip's would need four times what it needs at half of it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn.functional import normalize

from vlp import similarity
from vlp.objectives import base
from vlp.types import Embeddings

MIB = 1 << 20
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def ours(name: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return base.parse({"name": name}).loss(Embeddings(image, text, image, text, 0, scale, bias)).total


def clip_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return ClipLoss()(image, text, scale)


def siglip_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return SigLipLoss()(image, text, scale, bias)


PAIRS: dict[str, tuple[Loss, Loss]] = {
    "softmax": (partial(ours, "infonce"), clip_loss),
    "sigmoid": (partial(ours, "siglip"), siglip_loss),
}


def in_child(loss: Loss, rows: int, width: int, answer: Connection) -> None:
    similarity.MOST_DENSE_LOGITS = 0  # what is measured is the way of large batches, at any size asked for
    generator = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(rows, width, generator=generator), dim=1)
    text = normalize(torch.randn(rows, width, generator=generator) + 0.3 * image, dim=1)
    inputs = [value.requires_grad_() for value in (image, text, torch.tensor(50.0), torch.tensor(-5.0))]
    loss(inputs[0][:64], inputs[1][:64], *inputs[2:]).backward()
    for value in inputs:
        value.grad = None
    before, start = psutil.Process().memory_info().rss, time.process_time()
    total = loss(*inputs)
    total.backward()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer.send({"seconds": seconds, "mib": (peak - before) / MIB, "loss": total.item()})


def measure(loss: Loss, rows: int, width: int) -> dict[str, float]:
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=in_child, args=(loss, rows, width, sender))
    child.start()
    sender.close()
    found = receiver.recv()
    child.join()
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def compare(kind: str, rows: int, width: int, repeats: int) -> dict[str, Any]:
    """Seconds and MiB of both (medians), ratios with their spread, and how far the losses differ."""
    runs: dict[str, list[dict[str, float]]] = {"vlp": [], "open_clip": []}
    for repeat in range(repeats):
        pair = list(zip(runs, PAIRS[kind], strict=True))
        for name, loss in pair if repeat % 2 else reversed(pair):
            runs[name].append(measure(loss, rows, width))
    pairs = list(zip(runs["vlp"], runs["open_clip"], strict=True))
    return {
        **{
            n: {key: statistics.median(r[key] for r in found) for key in ("seconds", "mib")}
            for n, found in runs.items()
        },
        "ratio": {key: spread([b[key] / a[key] for a, b in pairs]) for key in ("seconds", "mib")},
        "loss_difference": max(abs(a["loss"] - b["loss"]) for a, b in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--softmax", type=int, nargs="*", default=[8192, 16384], metavar="B", help="batch sizes (default: %(default)s)")
    add("--sigmoid", type=int, nargs="*", default=[8192], metavar="B", help="batch sizes (default: %(default)s)")
    add("--alone", type=int, default=32768, metavar="B", help="vlp's softmax alone, 0 for none (default: %(default)s)")
    add("--width", type=int, default=512, help="of the embeddings (default: %(default)s)")
    add("--repeats", type=int, default=5, help="alternated repeats (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"width": arguments.width, "repeats": arguments.repeats, "rows": {}}
    for kind in PAIRS:
        for rows in getattr(arguments, kind):
            row = result["rows"][f"{kind}, batch {rows}"] = compare(kind, rows, arguments.width, arguments.repeats)
            time_ratio, memory_ratio = row["ratio"]["seconds"], row["ratio"]["mib"]
            print(
                f"{kind}, batch {rows:,}: vlp {row['vlp']['seconds']:.2f} s and {row['vlp']['mib']:.0f} MiB, open_clip "
                f"{row['open_clip']['seconds']:.2f} s and {row['open_clip']['mib']:.0f} MiB; ratio of time "
                f"{time_ratio['median']:.2f} ({time_ratio['min']:.2f}-{time_ratio['max']:.2f}), of memory "
                f"{memory_ratio['median']:.1f} ({memory_ratio['min']:.1f}-{memory_ratio['max']:.1f})",
                flush=True,
            )
    if arguments.alone:
        alone = measure(PAIRS["softmax"][0], arguments.alone, arguments.width)
        result["alone"] = {"batch": arguments.alone, **alone}
        print(f"softmax, batch {arguments.alone:,}: vlp {alone['seconds']:.2f} s and {alone['mib']:.0f} MiB")
    result["versions"] = {name: importlib.metadata.version(name) for name in ("open_clip_torch", "torch")}
    result["python"] = platform.python_version()
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
