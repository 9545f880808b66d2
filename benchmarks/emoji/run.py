"""vlp's emoji recipes side by side with open_clip's own trainer: same pictures, same evaluation, several seeds.

Trains what is not trained yet, evaluates every model with vlp's evaluator, and writes results.json and the table of
README.md, which says how to prepare the data and the second environment.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import figures
import torch
from ours import Ours
from peer import PACKAGES, Peer

from vlp.data.index import open_shard
from vlp.data.shards import find_shards
from vlp.types import UserError

RECIPES = ("emoji", "emoji-minilm")
TABLE_START, TABLE_END = "<!-- table: written by run.py -->", "<!-- end of table -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=Path("data"), help="holds emoji/ and stamps/ (default: %(default)s)")
    add("--flat", type=Path, default=Path("data/flat"), help="the same, made with --flatten (default: %(default)s)")
    add("--runs", type=Path, default=Path("runs/benchmark-emoji"), help="runs, METHOD/seed-S (default: %(default)s)")
    add("--open-clip-python", metavar="PYTHON", help="Python with open_clip_torch and webdataset==0.2.86")
    add(
        "--method",
        action="append",
        choices=[figures.PEER, *RECIPES],
        help="train only this; repeatable (default: all); the table is of all that is finished",
    )
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    add("--epochs", type=int, default=4, help="of open_clip's trainer (default: %(default)s)")
    add("--threads", type=int, help="threads of torch in training (default: torch decides)")
    add(
        "--output",
        type=Path,
        default=Path(__file__).parent,
        metavar="DIR",
        help="for results.json and, where there is one, README.md (default: %(default)s)",
    )
    try:
        benchmark(parser.parse_args())
    except UserError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(2)


def benchmark(arguments: argparse.Namespace) -> None:
    """Train, evaluate, collect."""
    seeds = list(dict.fromkeys(arguments.seeds))
    if len(seeds) > figures.MAX_SEEDS or arguments.epochs < 1:
        raise UserError(f"--seeds takes 1 to {figures.MAX_SEEDS} seeds, --epochs at least 1")
    runs = arguments.runs.absolute()
    sets = [arguments.data / "emoji" / "eval" / name for name in figures.SETS]
    num_samples = check_same_pictures(arguments.data, arguments.flat)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    flat = find_shards([str(source) for source in sources(arguments.flat)])
    peer = Peer(runs / figures.PEER, arguments.open_clip_python, flat, sets, num_samples, arguments.epochs, device)
    sides: dict[str, Peer | Ours] = {figures.PEER: peer}
    for name in RECIPES:
        sides[name] = Ours(runs / name, name, sources(arguments.data), sets, num_samples)

    environment = dict(os.environ)
    if arguments.threads:
        environment["OMP_NUM_THREADS"] = str(arguments.threads)
    for seed in seeds:  # seed by seed, so that what is finished is always comparable
        for method in arguments.method or sides:
            print(f"{method}, seed {seed}", flush=True)
            sides[method].train(seed, environment)

    found = [side.run(seed) for side in sides.values() for seed in seeds if side.finished(seed)]
    results = {
        "machine": {
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "threads": arguments.threads,
            "device": device,
        },
        "versions": {"vlp": own_versions(), figures.PEER: peer.versions(seeds)},
        "training_samples": num_samples,
        "open_clip_arguments": ["SHARDS" if text == peer.train_data else text for text in peer.arguments(seeds[0])],
        **figures.summarise(found),
    }
    write(results, arguments.output)
    print(figures.table(results))


def sources(data: Path) -> list[Path]:
    """Where the training shards lie."""
    return [data / "emoji" / "train", data / "stamps"]


def check_same_pictures(data: Path, flat: Path) -> int:
    """Number of training samples, after a look that both copies hold the same ones in the same order.

    Raises:
        UserError: they do not.
    """
    splits, samples = [], []
    for directory in (data, flat):
        split = directory / "emoji" / "split.json"
        if not split.is_file():
            raise UserError(f"{split} is missing: make the data as README.md says")
        splits.append(split.read_bytes())
        shards = [open_shard(path)[0] for path in find_shards([str(source) for source in sources(directory)])]
        samples.append([(shard.key(row), shard.read(row, {"txt"})) for shard in shards for row in range(len(shard))])
    if splits[0] != splits[1] or samples[0] != samples[1]:
        raise UserError(f"{flat} and {data} hold different samples: make both with the same options but --flatten")
    return len(samples[0])


def own_versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in ("vlp", *PACKAGES)}}


def write(results: dict[str, Any], output: Path) -> None:
    """``results.json``, and the table between its two marks in ``README.md`` where there is one."""
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    (output / "results.json").write_text(text, encoding="utf-8")
    readme = output / "README.md"
    if readme.is_file():
        page = readme.read_text(encoding="utf-8")
        readme.write_text(with_table(page, figures.table(results)), encoding="utf-8")


def with_table(page: str, table: str) -> str:
    """``page`` with ``table`` between the marks."""
    before, start, rest = page.partition(TABLE_START)
    _, end, after = rest.partition(TABLE_END)
    if not start or not end:
        raise UserError(f"README.md has lost its marks '{TABLE_START}' and '{TABLE_END}': put them back")
    return f"{before}{start}\n\n{table}\n\n{end}{after}"


if __name__ == "__main__":
    main()
