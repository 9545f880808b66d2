"""The captioning loss over a vocabulary beside dense logits: memory and CPU time, forward and backward.

    python benchmarks/speed/caption_loss.py [--captions 16 64] [--repeats 5] [--json FILE]

From the decoder's states of N captions of 76 ids (width 512, vocabulary 49,408, fp32, one thread) to the gradients of
states and head: `vlp.encoders.vocabulary_loss`; dense logits with open_clip's CoCaLoss; torch's `linear_cross_entropy`
in chunks, where torch has it. Once with captions that fill all 76 places, once with real lengths, drawn around 13 ids:
there vlp computes the ids that are told, the others compute padding, too, and ignore it, as open_clip does.

Each measurement is a forked process of its own, turn by turn. Memory is what its high-water mark rises by above the
inputs (states, head, labels), less the gradients of states and head, which every way must hold: logits, their softmax
and gradients, copies, buffers. A ratio is theirs / vlp of one repeat. ``--chunks`` measures other sizes of vlp's chunk.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from open_clip.loss import CoCaLoss
from torch import Tensor

from vlp.bench._losses import in_child, spread
from vlp.encoders import vocabulary_loss

VLP, DENSE, TORCH = "vlp", "dense logits, open_clip's loss", "torch linear_cross_entropy"
PLACES = 76
MIB = 1 << 20
Way = Callable[[Tensor, Tensor, Tensor], Tensor]  # states NLW, head WV, labels NL with 0 behind the end
Figures = dict[str, float]


def vlp_way(states_NLW: Tensor, head_WV: Tensor, labels_NL: Tensor) -> Tensor:
    told_NL = labels_NL != 0
    total, _ = vocabulary_loss.cross_entropy(states_NLW[told_NL], head_WV, labels_NL[told_NL])
    return total / told_NL.sum()


def dense_way(states_NLW: Tensor, head_WV: Tensor, labels_NL: Tensor) -> Tensor:
    nothing = torch.zeros(())
    loss = CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=0.0, pad_id=0)
    return loss(nothing, nothing, states_NLW @ head_WV, labels_NL, nothing)[1]


def torch_way(states_NLW: Tensor, head_VW: Tensor, labels_NL: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(
        states_NLW.flatten(0, 1), head_VW, labels_NL.flatten(), ignore_index=0, options=options
    )


def ways() -> dict[str, Way]:
    peers: dict[str, Way] = {VLP: vlp_way, DENSE: dense_way}
    return peers | ({TORCH: torch_way} if hasattr(F, "linear_cross_entropy") else {})


def inputs(captions: int, full: bool, width: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """States, head and labels; of real lengths, 13 ids in the mean and 5 at the least."""
    generator = torch.Generator().manual_seed(0)
    states_NLW = torch.randn(captions, PLACES, width, generator=generator)
    head_WV = 0.02 * torch.randn(width, vocabulary, generator=generator)
    labels_NL = torch.randint(1, vocabulary, (captions, PLACES), generator=generator)
    if not full:
        lengths_N = 5 + torch.poisson(torch.full((captions,), 8.0), generator=generator)
        labels_NL[torch.arange(PLACES) >= lengths_N[:, None]] = 0
    return states_NLW.requires_grad_(), head_WV.requires_grad_(), labels_NL


def measure(way: Way, chunk: int, *size: Any) -> Figures:
    return in_child(_measure, way, chunk, *size)


def _measure(way: Way, chunk: int, *size: Any) -> Figures:
    torch.set_num_threads(1)
    vocabulary_loss.CHUNK = chunk
    states, head, labels = inputs(*size)
    if way is torch_way:  # its own layout of the weights, as `nn.Linear` has it
        head = head.detach().t().contiguous().requires_grad_()
    way(states[:1, :4], head, labels[:1, :4]).backward()  # what libraries load at their first product
    states.grad = head.grad = None
    before, start = psutil.Process().memory_info().rss, time.process_time()
    loss = way(states, head, labels)
    loss.backward()
    seconds = time.process_time() - start
    assert states.grad is not None
    assert head.grad is not None
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    kept = sum(leaf.grad.nbytes for leaf in (states, head) if leaf.grad is not None)
    norms = {f"gradient_{name}": leaf.grad.norm().item() for name, leaf in (("states", states), ("head", head))}
    return {"seconds": seconds, "mib": max(0, peak - before - kept) / MIB, "loss": loss.item(), **norms}


def compare(repeats: int, *size: Any) -> dict[str, Any]:
    """Medians of each way, ratios theirs / vlp with their spread, and how far losses and gradients differ."""
    runs: dict[str, list[Figures]] = {name: [] for name in ways()}
    for repeat in range(repeats):
        for name in runs if repeat % 2 else reversed(runs):
            runs[name].append(measure(ways()[name], vocabulary_loss.CHUNK, *size))
    first = runs[VLP][0]
    differences = {
        key: max(abs(run[key] / first[key] - 1) for found in runs.values() for run in found)
        for key in ("loss", "gradient_states", "gradient_head")
    }
    ratios = {
        peer: {
            key: spread([b[key] / max(a[key], 1e-9) for a, b in zip(runs[VLP], found, strict=True)])
            for key in ("seconds", "mib")
        }
        for peer, found in runs.items()
        if peer != VLP
    }
    told = int((inputs(*size)[2] != 0).sum())
    return {"told": told, "ways": {name: medians(found) for name, found in runs.items()}, "ratio": ratios} | {
        "differences": differences
    }


def compare_chunks(chunks: list[int], repeats: int, *size: Any) -> dict[int, Figures]:
    runs: dict[int, list[Figures]] = {chunk: [] for chunk in chunks}
    for repeat in range(repeats):
        for chunk in chunks if repeat % 2 else reversed(chunks):
            runs[chunk].append(measure(vlp_way, chunk, *size))
    return {chunk: medians(found) for chunk, found in runs.items()}


def medians(runs: list[Figures]) -> Figures:
    return {key: statistics.median(run[key] for run in runs) for key in ("seconds", "mib")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--captions", type=int, nargs="*", default=[16, 64], metavar="N", help="of a batch (default: %(default)s)")
    add("--chunks", type=int, nargs="*", default=[64, 128, 256, 512, 1024], help="in tokens (default: %(default)s)")
    add("--width", type=int, default=512, help="of the states (default: %(default)s)")
    add("--vocabulary", type=int, default=49_408, help="(default: %(default)s)")
    add("--repeats", type=int, default=5, help="alternated repeats (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    sizes = arguments.width, arguments.vocabulary
    result: dict[str, Any] = {"width": sizes[0], "vocabulary": sizes[1], "repeats": arguments.repeats, "rows": {}}
    for captions in arguments.captions:
        for full in (True, False):
            row = compare(arguments.repeats, captions, full, *sizes)
            name = f"{captions} captions of {f'{PLACES} ids' if full else 'real lengths'}"
            result["rows"][name] = row
            print(f"{name}, {row['told']:,} ids told")
            for way, found in row["ways"].items():
                print(f"  {way:<34}{found['seconds']:>8.2f} s of CPU {found['mib']:>8.0f} MiB")
    if arguments.chunks and arguments.captions:
        found = compare_chunks(arguments.chunks, arguments.repeats, arguments.captions[0], True, *sizes)
        result["chunks"] = found
        for chunk, figures in found.items():
            print(f"vlp in chunks of {chunk:<5}{figures['seconds']:>8.2f} s of CPU {figures['mib']:>8.0f} MiB")
    result["versions"] = {name: importlib.metadata.version(name) for name in ("open_clip_torch", "torch")}
    result["python"] = platform.python_version()
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
