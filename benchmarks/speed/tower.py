"""The text tower with its backward pass on captions without padding, beside open_clip's on all its places.

    python benchmarks/speed/tower.py [--model ViT-B-32] [--batch-size 64] [--repeats 5] [--shards SHARDS] [--json FILE]

The same weights, ids and loss (the mean cosine with fixed directions), fp32, turn by turn; how far features and
gradients differ, too. Captions are those of drawn scenes (``--shards`` takes your own), and made ones: of lengths near
13 ids, as captions of photographs have, and with a long tail up to the whole context, as alternative texts on the web.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import step
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.bench._losses import spread
from vlp.data.batches import DataOptions, TrainingData
from vlp.data.transforms import PictureFormat
from vlp.encoders import packing, pad_free
from vlp.encoders.openclip import ModelOptions, build
from vlp.encoders.packing import shapes_of
from vlp.encoders.two_tower import TwoTower

OURS, PEER = "vlp", "open_clip"
SMALL = PictureFormat((8, 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
START, END = 49406, 49407
Encode = Callable[[Tensor], Tensor]
Figures = dict[str, float]


def texts_of(shards: str, model: TwoTower, rows: int) -> Tensor:
    """Ids of the captions of a batch, NL."""
    data = TrainingData(DataOptions(train=shards, workers=0), SMALL, model.tokenizer, rows, seed=0)
    return next(iter(data.batches(0, 1))).text_NL


def made(length_N: Tensor, places: int) -> Tensor:
    """Ids NL of that many ids each, start and end included, drawn from the vocabulary."""
    generator = torch.Generator().manual_seed(1)
    length_N = length_N.long().clamp(3, places)
    text_NL = torch.randint(1, START, (len(length_N), places), generator=generator)
    text_NL[:, 0] = START
    text_NL[torch.arange(len(length_N)), length_N - 1] = END
    return text_NL.masked_fill(torch.arange(places) >= length_N[:, None], 0)


def lengths(rows: int) -> dict[str, Tensor]:
    """Made ones: around 13, and of a median of 15 with a long tail."""
    generator = torch.Generator().manual_seed(0)
    around = 5 + torch.poisson(torch.full((rows,), 8.0), generator=generator)
    tailed = (15 * (0.6 * torch.randn(rows, generator=generator)).exp()).round()
    return {"made, around 13": around, "made, with a long tail": tailed}


def ways(model: TwoTower) -> dict[str, tuple[TwoTower, Encode]]:
    """A tower of its own for each, with the same weights."""
    ours, theirs = model, copy.deepcopy(model)
    packing.prepare(getattr(ours.clip, "text", ours.clip))
    lengths_of = pad_free.lengths_reader(ours.clip)
    assert lengths_of is not None, "this tower needs its padding"
    return {
        OURS: (ours, lambda text_NL: ours.encode_text(text_NL, shapes_of(lengths_of(text_NL)))),
        PEER: (theirs, lambda text_NL: theirs.clip.encode_text(text_NL)),
    }


def passed(model: TwoTower, encode: Encode, text_NL: Tensor) -> tuple[Figures, Tensor]:
    """A forward and backward pass: its time, and the features, of length 1; gradients stay in the model."""
    model.zero_grad()
    clock, cpu = time.perf_counter(), time.process_time()
    features_ND = F.normalize(encode(text_NL), dim=-1)
    direction_ND = torch.randn(features_ND.shape, generator=torch.Generator().manual_seed(2))
    (features_ND * F.normalize(direction_ND, dim=-1)).sum(-1).mean().backward()
    return {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}, features_ND.detach()


def compare(model: TwoTower, text_NL: Tensor, repeats: int) -> dict[str, Any]:
    """The turns of both, every other round in the reverse order; ratios theirs / ours and the largest differences."""
    contenders = ways(model)
    features = {name: passed(*way, text_NL)[1] for name, way in contenders.items()}
    turns: dict[str, list[Figures]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name in contenders if repeat % 2 == 0 else reversed(contenders):
            turns[name].append(passed(*contenders[name], text_NL)[0])
    kinds = {"clock": "seconds", "cpu": "cpu_seconds"}
    return {
        "ratio": {
            kind: spread([b[key] / a[key] for a, b in zip(turns[OURS], turns[PEER], strict=True)])
            for kind, key in kinds.items()
        },
        "difference": {
            "features": (features[OURS] - features[PEER]).abs().max().item(),
            "gradients": differing(*(contenders[name][0] for name in (OURS, PEER))),
        },
        "turns": turns,
    }


def differing(one: TwoTower, other: TwoTower) -> float:
    """The largest difference of any two gradients of the same weight, as a share of the largest gradient."""
    pairs = [(a.grad, b.grad) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    found = [(a, b) for a, b in pairs if a is not None and b is not None]
    return max((a - b).abs().max().item() for a, b in found) / max(b.abs().max().item() for _, b in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="ViT-B-32", help="of open_clip, whose text tower it is (default: %(default)s)")
    add("--batch-size", type=int, default=64, help="(default: %(default)s)")
    add("--repeats", type=int, default=5, help="alternated repeats (default: %(default)s)")
    add("--shards", help="shards with captions (default: scenes that are drawn for it)")
    add("--threads", type=int, help="of torch (default: as many as there are cores)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = build(ModelOptions(name=arguments.model), seed=0)
    model.clip.visual = torch.nn.Identity()  # whose gradients nobody asks for
    rows, places = arguments.batch_size, model.tokenizer.context_length  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as temporary:
        shards = arguments.shards or step.drawn(Path(temporary) / "scenes", rows)
        texts = {arguments.shards or "scenes": texts_of(shards, model, rows)}
    texts |= {name: made(length_N, places) for name, length_N in lengths(rows).items()}
    result: dict[str, Any] = {"model": arguments.model, "batch_size": rows, "places": places, "rows": {}}
    for name, text_NL in texts.items():
        length_N = model.text_lengths(text_NL)
        about = f"{length_N.float().mean():.1f} ids in the mean, {length_N.max()} at most, of {places}"
        row = {"mean": length_N.float().mean().item(), "longest": int(length_N.max()), "about": about}
        result["rows"][name] = row | compare(copy.deepcopy(model), text_NL, arguments.repeats)
        ratio, difference = (result["rows"][name][key] for key in ("ratio", "difference"))
        by_clock, of_cpu = (f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for r in ratio.values())
        print(f"{name}, {about}: open_clip / vlp {by_clock}, of CPU {of_cpu}", flush=True)
        print(f"  features differ by {difference['features']:.1e}, gradients by {difference['gradients']:.1e}")
    result["threads"] = torch.get_num_threads()
    result["versions"] = {name: importlib.metadata.version(name) for name in ("open_clip_torch", "torch")}
    result["python"] = platform.python_version()
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
