"""A whole evaluation of two sets, for retrieval and with classes, by vlp beside CLIP_benchmark: one model, one process.

    python benchmarks/speed/evaluation.py [--share 0.1] [--model ViT-B-32] [--rounds 3] [--json FILE]

A turn is both sets, from the directory to all figures; loading the model is not counted. The sets are made, in
CLIP_benchmark's webdataset layout with four tars each: 1,000 pictures with five captions of some eleven words, and
1,000 pictures of 100 classes of ImageNet by name with OpenAI's 80 templates, or a ``--share`` of the pictures and
classes of both, since a full turn of CLIP_benchmark takes half an hour on two cores. Pictures are JPEG of 640x480.

CLIP_benchmark 1.6.2 runs what its command line runs (`pip install --no-deps clip-benchmark==1.6.2`): its data set, a
DataLoader with four workers, batches of 64 and its evaluators at K = 1, 5 and 10, once in fp32 (`--no_amp`), as vlp
does, and once as it comes, which is in bfloat16 on a CPU. vlp runs what `vlp eval` runs, with its intervals and the
geometry of the embeddings, and without its cache of class embeddings, which would answer for the prompts from the
second turn on. A ratio is CLIP_benchmark's time / vlp's of one round. The model has random weights, which take as long
as others. CLIP_benchmark's own `accuracy` converts arrays of one number, which new numpy refuses; it is given one that
does not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import itertools
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from pictures import jpeg, made_picture
from sugarcrepe import load_peer, write_model
from sugarcrepe_files import made
from torch import Tensor
from torch.utils.data import DataLoader

from vlp.bench._losses import spread
from vlp.data.write import TarFile
from vlp.encoders import openclip
from vlp.encoders.two_tower import TwoTower
from vlp.evaluation.classification_options import ClassificationOptions
from vlp.evaluation.run import EvaluateOptions, find_task

PEERS = {"CLIP_benchmark, fp32": False, "CLIP_benchmark, as it comes": True}  # whether with automatic mixed precision
RETRIEVAL, CLASSES = "retrieval", "classes"
PICTURES, CAPTIONS, NUM_CLASSES, TARS = 1_000, 5, 100, 4
RECALL_AT = [1, 5, 10]
Figures = dict[str, dict[str, float]]  # of a set by name


def write_sets(root: Path, share: float, size: tuple[int, int]) -> dict[str, int]:
    """Both sets below ``root``; what they hold in number."""
    draw = random.Random(0)
    pictures, classes = max(TARS, round(share * PICTURES)), max(5, round(share * NUM_CLASSES))
    captions = sorted({item["caption"] for items in made(1.0).values() for item in items.values()})
    told = ["\n".join(draw.sample(captions, CAPTIONS)).encode() for _ in range(pictures)]
    _write_set(root / RETRIEVAL, ({"jpg": _picture(i, size), "txt": text} for i, text in enumerate(told)), "retrieval")
    labels = [str(number % classes).encode() for number in range(pictures)]
    _write_set(root / CLASSES, ({"jpg": _picture(PICTURES + i, size), "cls": one} for i, one in enumerate(labels)))
    templates = [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES]
    (root / CLASSES / "classnames.txt").write_text("\n".join(IMAGENET_CLASSNAMES[:classes]) + "\n")
    (root / CLASSES / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    return {
        "pictures": 2 * pictures,
        "captions": CAPTIONS * pictures,
        "classes": classes,
        "prompts": classes * len(templates),
    }


def _picture(seed: int, size: tuple[int, int]) -> bytes:
    return jpeg(made_picture(*size, seed=seed), 90)


def _write_set(folder: Path, samples: Iterable[dict[str, bytes]], kind: str = "") -> None:
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text(f"{TARS}\n")
    if kind:
        (folder / "dataset_type.txt").write_text(f"{kind}\n")
    everything = list(enumerate(samples))
    for tar in range(TARS):
        with TarFile(folder / "test" / f"{tar}.tar") as file:
            for number, members in everything[tar::TARS]:
                file.write(f"{number:09d}", members)


def ours(model: TwoTower, root: Path) -> Figures:
    """As `vlp eval` does it, without the cache of class embeddings."""
    options = EvaluateOptions(classification=ClassificationOptions(cache=False))
    return {
        name: find_task(root / name, options).run(model, options.batch_size).metrics for name in (RETRIEVAL, CLASSES)
    }


def theirs(model: tuple[Any, Any, Any], root: Path, amp: bool, batch_size: int, workers: int) -> Figures:
    """As `clip_benchmark eval` does it, one set after the other."""
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

    clip, transform, tokenizer = model
    found: Figures = {}
    ours = mock.patch.object(zeroshot_classification, "accuracy", accuracy)
    with ours, redirect_stderr(io.StringIO()):  # its progress
        for name in (RETRIEVAL, CLASSES):
            task = "zeroshot_retrieval" if name == RETRIEVAL else "zeroshot_classification"
            dataset = build_dataset(f"wds/{name}", str(root / name), transform, split="test", task=task)
            loader = DataLoader(dataset.batched(batch_size), batch_size=None, shuffle=False, num_workers=workers)
            if name == RETRIEVAL:
                found[name] = zeroshot_retrieval.evaluate(
                    clip, loader, tokenizer, "cpu", amp=amp, recall_k_list=RECALL_AT
                )
            else:
                found[name] = zeroshot_classification.evaluate(
                    clip, loader, tokenizer, dataset.classes, dataset.templates, "cpu", amp=amp
                )
    return found


def accuracy(score_NC: Tensor, label_N: Tensor, topk: tuple[int, ...]) -> list[float]:
    """The shares of rows whose label is among the first K, as CLIP_benchmark's function of this name."""
    first = score_NC.topk(max(topk), 1, True, True).indices == label_N[:, None]
    return [first[:, :k].any(dim=1).double().mean().item() for k in topk]


def timed(work: Callable[[], Figures]) -> dict[str, Any]:
    """``cpu_seconds`` are of this process and of the workers that it had."""
    clock, cpu = time.perf_counter(), sum(os.times()[:4])
    figures = work()
    seconds, cpu_seconds = time.perf_counter() - clock, sum(os.times()[:4]) - cpu
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "figures": figures}


def taking_turns(contenders: dict[str, Callable[[], Figures]], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Every other round in the reverse order."""
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in contenders if number % 2 == 0 else reversed(contenders):
            turn = timed(contenders[name])
            turns[name].append(turn)
            print(f"{name:<30}{turn['seconds']:>8.1f} s, {turn['cpu_seconds']:.1f} s of CPU", flush=True)
    return turns


def differing(one: Figures, other: Figures) -> tuple[int, float]:
    """How many of the peer's figures (``one``) are others to the fourth digit, and by how much at most."""
    pairs = [(value, other[name][metric]) for name, metrics in one.items() for metric, value in metrics.items()]
    differences = [abs(a - b) for a, b in pairs if a == a]
    return sum(round(d, 4) > 0 for d in differences), max(differences)


def summary(turns: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    result = {}
    for peer in turns.keys() - {"vlp"}:
        rounds = list(zip(turns[peer], turns["vlp"], strict=True))
        number, most = differing(turns[peer][0]["figures"], turns["vlp"][0]["figures"])
        result[peer] = {
            "clock": spread([a["seconds"] / b["seconds"] for a, b in rounds]),
            "cpu": spread([a["cpu_seconds"] / b["cpu_seconds"] for a, b in rounds]),
            "differing_figures": number,
            "largest_difference": most,
            "figures": len(list(itertools.chain(*turns[peer][0]["figures"].values()))),
        }
    return dict(sorted(result.items(), reverse=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--share", type=float, default=0.1, help="of pictures and classes (default: %(default)s)")
    add("--size", type=int, nargs=2, default=(640, 480), metavar="N", help="of a picture (default: 640 480)")
    add("--model", default="ViT-B-32", help="open_clip's name (random weights), or a MODEL (default: %(default)s)")
    add("--rounds", type=int, default=3, help="(default: %(default)s)")
    add("--batch-size", type=int, default=64, help="of CLIP_benchmark (default: its own, %(default)s)")
    add("--workers", type=int, default=4, help="of CLIP_benchmark (default: its own, %(default)s)")
    add("--threads", type=int, help="of torch (default: as many as there are cores)")
    add("--fp32-only", action="store_true", help="leave out CLIP_benchmark as it comes")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        root, weights = Path(temporary) / "sets", Path(temporary) / "model"
        numbers = write_sets(root, arguments.share, tuple(arguments.size))
        write_model(arguments.model, weights)
        model, peer = openclip.load(str(weights)), load_peer(weights)
        threads = torch.get_num_threads()
        print(f"{', '.join(f'{n:,} {what}' for what, n in numbers.items())}; {arguments.model}, {threads} threads")
        contenders: dict[str, Callable[[], Figures]] = {"vlp": lambda: ours(model, root)}
        for name, amp in PEERS.items():
            if not (amp and arguments.fp32_only):
                contenders[name] = lambda amp=amp: theirs(peer, root, amp, arguments.batch_size, arguments.workers)
        turns = taking_turns(contenders, arguments.rounds)
    ratio = summary(turns)
    for name, row in ratio.items():
        by_clock, of_cpu = (
            f"{row[kind]['median']:.2f} ({row[kind]['min']:.2f} to {row[kind]['max']:.2f})" for kind in ("clock", "cpu")
        )
        differ = (
            f"{row['differing_figures']} of {row['figures']} figures differ, at most by {row['largest_difference']:.1e}"
        )
        print(f"{name} / vlp: {by_clock}; of CPU {of_cpu}; {differ}")
    if arguments.json:
        versions = ("clip-benchmark", "open_clip_torch", "torch", "pillow")
        result = {
            "model": Path(arguments.model).name,
            "share": arguments.share,
            "size": list(arguments.size),
            **numbers,
            "threads": threads,
            "ratio": ratio,
            "turns": turns,
            "versions": {name: importlib.metadata.version(name) for name in versions},
            "python": platform.python_version(),
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
