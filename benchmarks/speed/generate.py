"""Captions of a CoCa by vlp beside open_clip's `generate`: the same weights, pictures and beams, taking turns.

    python benchmarks/speed/generate.py [--pictures 4] [--beams 6] [--length 30] [--rounds 5] [--json FILE]

A turn is all pictures in one batch, from the pixels to the ids, greedy and by beam search. Weights are random, so no
text would end by itself: all have ``--length`` ids. Before the turns a picture of each warms up. open_clip searches
without groups of beams here (`num_beam_groups=1`), as vlp does.

Afterwards both write again, with weights of which some texts end. open_clip 3.3.0 compares beams by sums of logits; for
this comparison its decoder gets a hook that makes them log-probabilities, and only texts that it ended count, since
it lets a text that is cut off win over others.

open_clip 3.3.0's `generate` needs a class that transformers has up to 4.56, with which vlp runs, too; elsewhere this
script says so and leaves all as it is:

    python -m venv --system-site-packages VENV && VENV/bin/pip install "transformers<4.57"
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip.coca_model
import torch
from torch import Tensor

from vlp.encoders import openclip
from vlp.encoders.two_tower import TwoTower
from vlp.generation import GenerationOptions, generate

Figures = dict[str, float]
Way = Callable[[Tensor], Tensor]
ENDING_LENGTH = 12  # of the texts that may end
_END_LOGIT, _END_SPREAD = 8.0, 10.0


def ways(model: TwoTower, beams: int, length: int, shortest: int) -> dict[str, dict[str, Way]]:
    """By search, of vlp and of open_clip: uint8 pictures -> ids. open_clip's ``min_seq_len`` leaves out the end."""

    def ours(**search: Any) -> Way:
        options = GenerationOptions(max_length=length, min_length=shortest, **search)
        return lambda image_NCHW: generate(model, image_NCHW, options)

    def theirs(**search: Any) -> Way:
        return lambda image_NCHW: model.clip.generate(
            model.normalise(image_NCHW), seq_len=length, min_seq_len=shortest - 1, **search
        )

    return {
        "greedy": {"vlp": ours(beams=1), "open_clip": theirs(generation_type="top_k", top_k=1)},
        f"{beams} beams": {"vlp": ours(beams=beams), "open_clip": theirs(num_beams=beams, num_beam_groups=1)},
    }


@torch.no_grad()
def timed(way: Way, image_NCHW: Tensor) -> tuple[Figures, Tensor]:
    clock, cpu = time.perf_counter(), time.process_time()
    text_NL = way(image_NCHW)
    return {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}, text_NL


def spread(theirs: list[float], ours: list[float]) -> Figures:
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def compare(contenders: dict[str, Way], image_NCHW: Tensor, rounds: int) -> dict[str, Any]:
    """The turns of both, every other round in the reverse order, and ratios of their time with the spread."""
    turns: dict[str, list[Figures]] = {name: [] for name in contenders}
    for way in contenders.values():
        way(image_NCHW[:1])
    for number in range(rounds):
        for name in contenders if number % 2 == 0 else reversed(contenders):
            figures, _ = timed(contenders[name], image_NCHW)
            turns[name].append(figures)
            print(f"  {name:<10}{figures['seconds']:>8.2f} s, {figures['cpu_seconds']:.2f} s of CPU", flush=True)
    kinds = {"clock": "seconds", "cpu": "cpu_seconds"}
    ratio = {
        kind: spread(*([turn[figure] for turn in turns[name]] for name in ("open_clip", "vlp")))
        for kind, figure in kinds.items()
    }
    return {"ratio": ratio, "turns": turns}


@torch.no_grad()
def let_texts_end(model: TwoTower) -> None:
    """Change the weights such that pictures weigh more and an end is likely after some texts."""
    decoder, end = model.clip.text_decoder, model.special_tokens.end
    for cross in decoder.cross_attn:
        cross.attn.out_proj.weight.mul_(4)
    decoder.ln_final.bias[0] += 1
    decoder.text_projection[:, end] *= _END_SPREAD
    decoder.text_projection[0] = 0
    decoder.text_projection[0, end] = _END_LOGIT


@torch.no_grad()
def same_texts(contenders: dict[str, Way], model: TwoTower, image_NCHW: Tensor) -> dict[str, int]:
    """How many texts open_clip ended, and how many of them vlp wrote as well."""
    hook = model.clip.text_decoder.register_forward_hook(lambda module, inputs, logits: logits.log_softmax(-1))
    try:
        theirs_NL = contenders["open_clip"](image_NCHW)
    finally:
        hook.remove()
    ours_NL = contenders["vlp"](image_NCHW)
    found = {"ended": 0, "same": 0}
    for ours, theirs in zip(ours_NL.tolist(), theirs_NL.tolist(), strict=True):
        if model.special_tokens.end in theirs:
            text = theirs[: theirs.index(model.special_tokens.end) + 1]
            found["ended"] += 1
            found["same"] += ours[: len(text)] == text
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="coca_ViT-B-32", help="a CoCa of open_clip, with random weights (default: %(default)s)")
    add("--pictures", type=int, default=4, help="of the batch (default: %(default)s)")
    add("--beams", type=int, default=6, help="(default: open_clip's own, %(default)s)")
    add("--length", type=int, default=30, help="ids of each text (default: open_clip's longest, %(default)s)")
    add("--rounds", type=int, default=5, help="(default: %(default)s)")
    add("--threads", type=int, help="of torch (default: as many as there are cores)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    if not open_clip.coca_model._has_transformers:
        print('left out, as open_clip\'s generate does not run here: it needs pip install "transformers<4.57"')
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = openclip.build(openclip.ModelOptions(name=arguments.model), seed=0).eval()
    shape = (arguments.pictures, 3, *model.picture_format.size)
    image_NCHW = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).byte()
    rows: dict[str, Any] = {}
    for name, contenders in ways(model, arguments.beams, arguments.length, arguments.length).items():
        print(f"{name}, {arguments.pictures} pictures, {arguments.length} ids", flush=True)
        rows[name] = compare(contenders, image_NCHW, arguments.rounds)
    let_texts_end(model)
    for name, contenders in ways(model, arguments.beams, ENDING_LENGTH, shortest=4).items():
        found, ratio = same_texts(contenders, model, image_NCHW), rows[name]["ratio"]
        rows[name] |= found
        by_clock, of_cpu = (f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for r in ratio.values())
        print(
            f"{name}: open_clip / vlp {by_clock}; of CPU {of_cpu}; {found['same']} of {found['ended']} texts the same"
        )
    if arguments.json:
        result = {
            **{name: getattr(arguments, name) for name in ("model", "pictures", "beams", "length")},
            "threads": torch.get_num_threads(),
            "rows": rows,
            "versions": {
                name: importlib.metadata.version(name) for name in ("open_clip_torch", "torch", "transformers")
            },
            "python": platform.python_version(),
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
