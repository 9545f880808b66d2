"""vlp's training step beside open_clip 3.3.0's own loop, loss and optimiser: samples a second, memory, losses.

    python benchmarks/speed/step.py [--models tiny ViT-B-32] [--batch-size 64 16] [--repeats 5] [--json FILE]

The same model from the same weights on the same batches in one process, turn by turn (`vlp bench step RECIPE` does so
for a recipe): vlp with every patch and every place of a text, without padding, and with half of the patches besides;
open_clip plain and with its own ``--force-patch-dropout 0.5``. Pictures and captions are drawn scenes (``--shards``
takes your own, whose captions then decide how long texts are). The first 20 losses are compared where nothing is left
out.

On CUDA the models are ViT-B-32, B-16 and L-14 in bf16 at several batch sizes, open_clip also with ``--torchcompile``,
and ViT-B-32 at 32,768 in cached micro-batches beside ``--accum-freq``; what has no room there is left out and named.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import recipe
from vlp.bench._step_case import OURS, PEER, Case, Contender
from vlp.bench.step import print_figures, versions
from vlp.engines.launch import start

TINY: dict[str, Any] = {
    "config": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 6, "width": 192, "head_width": 64},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
    }
}
MODELS = {"tiny": TINY} | {name: {"name": name} for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14")}
ON_CPU = (("tiny", 64, None), ("ViT-B-32", 16, None))  # model, batch, micro-batch
ON_CUDA = (
    *(("ViT-B-32", size, None) for size in (512, 1024, 2048)),
    *(("ViT-B-16", size, None) for size in (256, 512, 1024)),
    *(("ViT-L-14", size, None) for size in (64, 128, 256)),
    ("ViT-B-32", 32_768, 1024),
)
SHARE = 0.5
ALL_PLACES, DROPPED = f"{OURS}, all places", f"{OURS}, patch dropout {SHARE}"
DROPPED_PEER = f"{PEER}, force_patch_dropout {SHARE}"
CONTENDERS = {
    OURS: Contender(),
    ALL_PLACES: Contender(pad_free=False),
    DROPPED: Contender(changes={"patch_dropout": SHARE}),
    PEER: Contender(peer=True),
    DROPPED_PEER: Contender(peer=True, patch_dropout=SHARE),
}
COMPILED = {f"{PEER}, torchcompile": Contender(peer=True, compiled=True)}


def recipe_of(model: str, shards: str, batch_size: int, micro_batch_size: int | None, precision: str) -> recipe.Recipe:
    """A recipe that trains ``model`` from scratch by the softmax loss."""
    train = {"steps": 1000, "global_batch_size": batch_size, "micro_batch_size": micro_batch_size, "warmup": 100}
    tree = {
        "name": f"step-{model}",
        "data": {"train": shards},
        "model": MODELS[model],
        "objectives": [{"name": "infonce"}],
        "train": train | {"precision": precision},
    }
    return recipe.validate(tree, "the recipe of this benchmark")


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="*", choices=list(MODELS), help="(default: those of the device)")
    add("--batch-size", type=int, nargs="*", metavar="B", help="of each of them (default: those of the device)")
    add("--shards", help="shards with captions (default: scenes that are drawn for it)")
    add("--precision", choices=["fp32", "bf16"], default="bf16" if cuda else "fp32", help="(default: %(default)s)")
    add("--repeats", type=int, default=5, help="alternated repeats (default: %(default)s)")
    add("--seconds", type=float, default=3, help="about the length of a measurement (default: %(default)s)")
    add("--curve", type=int, default=20, help="steps whose losses are compared (default: %(default)s)")
    add("--threads", type=int, help="of torch (default: as many as there are cores)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    cases = ON_CUDA if cuda else ON_CPU
    if arguments.models:
        sizes = arguments.batch_size or [64] * len(arguments.models)
        if len(sizes) != len(arguments.models):
            parser.error("give as many of --batch-size as of --models")
        cases = tuple((model, size, None) for model, size in zip(arguments.models, sizes, strict=True))
    contenders = CONTENDERS | (COMPILED if cuda else {})
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        number = max(size for _, size, _ in cases)
        shards = arguments.shards or drawn(Path(temporary) / "scenes", number)
        for model, size, micro in cases:
            options = recipe_of(model, shards, size, micro, arguments.precision)
            case = Case(options, start(options))
            name = f"{model}, batch {size}" + (f" in passes of {micro}" if micro else "")
            print(f"\n{name}\n{case.about()}", flush=True)
            rows[name] = case.measure(contenders, arguments.seconds, arguments.repeats, arguments.curve)
            rows[name]["about"] = case.about()
            print_figures(rows[name])
    if arguments.json:
        result = {"precision": arguments.precision, "rows": rows, "threads": torch.get_num_threads(), **versions()}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def drawn(out: Path, number: int) -> str:
    """Scenes of 64 pixels, which larger models see enlarged."""
    write_scenes(ScenesOptions(out=out, num_train=number, num_eval=2, image_size=64))
    return str(out / "train")


if __name__ == "__main__":
    main()
