"""The whole loader, from tars to a batch of tensors in the main process: vlp's, open_clip's and plain webdataset.

    python benchmarks/speed/loader.py [--shards DIR] [--workers 2] [--repeats 5] [--json FILE]

All take turns on the same shards of JPEG photos with captions, at 224 x 224 with crops of 90 to 100 % of the area: vlp
in exact and in fast mode, open_clip's ``get_wds_dataset`` with its own transform and tokenizer, and webdataset with
torchvision's JPEG decoder and tensor transforms, as one would write it for speed. A window begins when every worker has
delivered a batch. A ratio is a peer's time a sample over ours in one round, by the clock and of all processors.
"bytes" is what crosses from a worker to the main process for each sample.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import pickle
import platform
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from open_clip.tokenizer import SimpleTokenizer
from pictures import MEAN, SIDE, STD, jpeg, made_picture
from rich.console import Console
from rich.progress import Progress
from tokenizer import made_captions
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from vlp.bench import _openclip_loader
from vlp.bench._rounds import Contender, ratio, rounds, summary
from vlp.data.batches import DataOptions, TrainingData
from vlp.data.transforms import AugmentOptions, Decode, PictureFormat
from vlp.data.write import ShardWriter
from vlp.encoders.tokenizer import FastTokenizer
from vlp.types import Batch

SIZES = ((640, 480), (341, 256))
FORMAT = PictureFormat((SIDE, SIDE), MEAN, STD)
AUGMENT = AugmentOptions()
OURS = ("vlp exact", "vlp fast")
PEERS = ("open_clip", "webdataset")
_ENDLESS = 10**9

Start = Callable[[], Iterator[Any]]


def write_shards(folder: Path, size: tuple[int, int], samples: int, pictures: int, shards: int = 4) -> Path:
    """``samples`` in img2dataset's layout, of ``pictures`` different ones, as a made picture takes a while."""
    encoded = [jpeg(made_picture(*size, seed), 90) for seed in range(pictures)]
    with ShardWriter(folder, -(-samples // shards)) as writer:
        for number, caption in enumerate(made_captions(samples)):
            writer.write(encoded[number % pictures], "jpg", caption)
    return folder


def ours(folder: Path, decode: Decode, batch_size: int, workers: int) -> Iterator[Batch]:
    options = DataOptions(train=str(folder), decode=decode, augment=AUGMENT, workers=workers)
    return TrainingData(options, FORMAT, FastTokenizer(), batch_size, seed=0).batches(0, _ENDLESS)


def theirs(folder: Path, batch_size: int, workers: int) -> Iterator[Any]:
    preprocess = _openclip_loader.transform(FORMAT, AUGMENT)
    return _openclip_loader.batches(_tars(folder), preprocess, FastTokenizer(), batch_size, workers, seed=0)


def plain(folder: Path, batch_size: int, workers: int) -> Iterator[Any]:
    """webdataset, with torchvision's tensors: uint8 through the crop, normalised to fp32 in the worker."""
    crop = v2.RandomResizedCrop(SIDE, scale=AUGMENT.crop_scale, interpolation=v2.InterpolationMode.BICUBIC)
    steps = v2.Compose([crop, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    tokens = SimpleTokenizer()

    def sample(members: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        encoded = torch.frombuffer(bytearray(members["jpg"]), dtype=torch.uint8)
        return steps(decode_jpeg(encoded, mode=ImageReadMode.RGB)), tokens(members["txt"].decode())[0]

    dataset = wds.WebDataset(_tars(folder), shardshuffle=100, seed=0).repeat().shuffle(1000).map(sample)
    loader = torch.utils.data.DataLoader(dataset.batched(batch_size), batch_size=None, num_workers=workers)
    yield from loader


def _tars(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.tar"))


def crossing_bytes(batch: Any) -> dict[str, float]:
    """Of one sample: the pixels, and the rest with all that goes along with it."""
    if isinstance(batch, Batch):
        image, ids, rest = batch.image_VNCHW, batch.text_NL, pickle.dumps((batch.keys, batch.captions, batch.skipped))
    else:
        (image, ids), rest = batch, b""
    pixels, others = image.numel() * image.element_size(), ids.numel() * ids.element_size() + len(rest)
    return {"pixels": pixels / len(ids), "rest": others / len(ids)}


def compare(folder: Path, batch_size: int, workers: int, repeats: int, seconds: float) -> dict[str, Any]:
    starts: dict[str, Start] = {
        "vlp exact": partial(ours, folder, "exact", batch_size, workers),
        "vlp fast": partial(ours, folder, "fast", batch_size, workers),
        "open_clip": partial(theirs, folder, batch_size, workers),
        "webdataset": partial(plain, folder, batch_size, workers),
    }
    crossing = {}
    for name, start in starts.items():
        stream = start()
        crossing[name] = crossing_bytes(next(stream))
        stream.close()  # type: ignore[attr-defined]
    contenders = {name: Contender(partial(_rows, start), workers) for name, start in starts.items()}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=repeats * len(contenders))
        windows = rounds(contenders, repeats, seconds, lambda name: bar.update(task, description=name, advance=1))
    return {
        "megabytes": sum(Path(tar).stat().st_size for tar in _tars(folder)) / 1e6,
        "loaders": {name: summary(found) for name, found in windows.items()},
        "ratio": {f"{peer} / {name}": ratio(windows[peer], windows[name]) for name in OURS for peer in PEERS},
        "bytes": crossing,
        "windows": {name: [vars(w) for w in found] for name, found in windows.items()},
    }


def _rows(start: Start) -> Iterator[int]:
    for batch in start():
        yield len(batch) if isinstance(batch, Batch) else len(batch[0])


def print_row(name: str, row: dict[str, Any]) -> None:
    print(f"{name}\n  {'':<12}{'samples/s':>10}{'CPU ms a sample':>18}{'bytes':>10}")
    for loader, speed in row["loaders"].items():
        print(
            f"  {loader:<12}{speed['samples_per_second']:>10,.0f}{speed['cpu_milliseconds_per_sample']:>18.2f}"
            f"{sum(row['bytes'][loader].values()):>10,.0f}"
        )
    for pair, found in row["ratio"].items():
        clock, cpu = (f"{r['median']:.2f} ({r['min']:.2f}-{r['max']:.2f})" for r in found.values())
        print(f"  {pair:<24} {clock} by the clock, {cpu} of CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shards", type=Path, metavar="DIR", help="shards of .jpg and .txt to use as they are (default: made ones)")
    add("--samples", type=int, default=2000, help="samples of each made set (default: %(default)s)")
    add("--pictures", type=int, default=100, help="different pictures among them (default: %(default)s)")
    add("--batch-size", type=int, default=128, help="(default: %(default)s)")
    add("--workers", type=int, default=2, help="(default: %(default)s)")
    add("--repeats", type=int, default=5, help="alternated rounds (default: %(default)s)")
    add("--seconds", type=float, default=5, help="least length of each window (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    measured = partial(
        compare,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        repeats=arguments.repeats,
        seconds=arguments.seconds,
    )
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.shards:
            rows[str(arguments.shards)] = measured(arguments.shards)
        for size in () if arguments.shards else SIZES:
            name = f"{size[0]}x{size[1]}"
            folder = write_shards(Path(temporary) / name, size, arguments.samples, arguments.pictures)
            rows[name] = measured(folder)
    for name, row in rows.items():
        print_row(name, row)
    if arguments.json:
        packages = ("open_clip_torch", "webdataset", "torch", "torchvision", "pillow", "simplejpeg")
        result = {
            "rows": rows,
            "batch_size": arguments.batch_size,
            "workers": arguments.workers,
            "repeats": arguments.repeats,
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "python": platform.python_version(),
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
