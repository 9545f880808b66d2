"""Embeddings of classes by vlp, anew and from its cache, beside CLIP_benchmark's and open_clip's, in one process.

    python benchmarks/speed/classifier.py [--classes 200] [--templates 80] [--model ViT-B-32] [--repeats 3] [--json F]

A turn is from class names and templates to the normalised means of normalised prompts, in fp32: tokens included, the
model loaded before. Names are ImageNet's and templates OpenAI's, as open_clip has them. The peers run as they come:
CLIP_benchmark 1.6.2 (`pip install --no-deps clip-benchmark==1.6.2`) a class at a time with `--no_amp`, open_clip ten
classes at a time. vlp's cache is an empty folder of its own: the first turn with it writes, those after it count; each
hashes the text tower and the token ids, and reads the file. A ratio is a peer's time / vlp's of one round. The model
has random weights, which take as long as others.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from vlp.bench._losses import spread
from vlp.encoders.openclip import ModelOptions, build
from vlp.encoders.two_tower import TwoTower
from vlp.evaluation.class_embeddings import class_embeddings
from vlp.evaluation.run import EvaluateOptions

COLD, CACHED = "vlp, anew", "vlp, from its cache"
PEERS = ("CLIP_benchmark", "open_clip")
Turn = dict[str, float]


def contenders(model: TwoTower, names: list[str], templates: list[str]) -> dict[str, Callable[[], Tensor]]:
    """What each computes, CD."""
    try:
        from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier
    except ModuleNotFoundError:
        sys.exit("no CLIP_benchmark: pip install --no-deps clip-benchmark==1.6.2")
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=model.clip.context_length)
    batch_size = EvaluateOptions().batch_size
    formats = [template.replace("{c}", "{}") for template in templates]
    prompts = [[template.replace("{c}", name) for template in templates] for name in names]

    def clip_benchmark() -> Tensor:
        with redirect_stderr(io.StringIO()):  # its progress bar
            return zero_shot_classifier(model.clip, tokenizer, names, templates, "cpu", amp=False).T

    return {
        COLD: lambda: class_embeddings(model, prompts, batch_size)[0],
        CACHED: lambda: class_embeddings(model, prompts, batch_size, cache=True)[0],
        "CLIP_benchmark": clip_benchmark,
        "open_clip": lambda: open_clip.build_zero_shot_classifier(model.clip, tokenizer, names, formats).T,
    }


def timed(work: Callable[[], Tensor]) -> tuple[Turn, Tensor]:
    clock, cpu = time.perf_counter(), time.process_time()
    class_CD = work()
    return {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}, class_CD


def compare(model: TwoTower, names: list[str], templates: list[str], repeats: int) -> dict[str, Any]:
    """The turns of all, every other round in the reverse order; ratios and the largest differences from ours."""
    ways = contenders(model, names, templates)
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    found = {CACHED: ways[CACHED]()}  # written here, and each tower has been warm once
    for repeat in range(repeats):
        for name in ways if repeat % 2 == 0 else reversed(ways):
            turn, found[name] = timed(ways[name])
            turns[name].append(turn)
    kinds = {"clock": "seconds", "cpu": "cpu_seconds"}
    ratios = {
        f"{peer} / {ours}": {
            kind: spread([b[key] / a[key] for a, b in zip(turns[ours], turns[peer], strict=True)])
            for kind, key in kinds.items()
        }
        for ours in (COLD, CACHED)
        for peer in PEERS
    }
    difference = {name: (found[COLD] - other).abs().max().item() for name, other in found.items() if name != COLD}
    return {"ratio": ratios, "difference": difference, "turns": turns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="ViT-B-32", help="of open_clip, whose text tower it is (default: %(default)s)")
    add("--classes", type=int, default=200, help="(default: %(default)s)")
    add("--templates", type=int, default=80, help="(default: %(default)s)")
    add("--repeats", type=int, default=3, help="alternated repeats (default: %(default)s)")
    add("--threads", type=int, help="of torch (default: as many as there are cores)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = build(ModelOptions(name=arguments.model), seed=0).eval()
    model.clip.visual = torch.nn.Identity()  # which has no part in it
    names = list(IMAGENET_CLASSNAMES)[: arguments.classes]
    templates = [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES[: arguments.templates]]
    result: dict[str, Any] = {"model": arguments.model, "classes": len(names), "templates": len(templates)}
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["VLP_CACHE"] = temporary
        result |= compare(model, names, templates, arguments.repeats)
    for pair, ratio in result["ratio"].items():
        by_clock, of_cpu = (f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for r in ratio.values())
        print(f"{len(names)} classes x {len(templates)} templates, {pair}: {by_clock}, of CPU {of_cpu}")
    print("class embeddings differ by " + ", ".join(f"{d:.1e} ({name})" for name, d in result["difference"].items()))
    result["threads"] = torch.get_num_threads()
    packages = ("open_clip_torch", "clip-benchmark", "torch")
    result["versions"] = {name: importlib.metadata.version(name) for name in packages}
    result["python"] = platform.python_version()
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
