"""Training pictures per CPU second: vlp's decoding and augmentation beside open_clip's, and how far the pixels differ.

    python benchmarks/speed/pictures.py [--images DIR] [--repeats 7] [--json FILE]

From the bytes of a JPEG to the tensor of a random crop at 224 x 224, in this process, one thread, turn by turn:
open_clip's ``image_transform(224, is_train=True)`` on Pillow's picture, and vlp's ``train_transform``, exact and fast.
A ratio is open_clip's time / ours of one repeat. "mae" is the mean difference from Pillow's bicubic resize of the same
crop, of 255. "decoding" is the share of a mode's time that the JPEG decoder takes: where that is nearly all, only
a quicker decoder would help. "bits" is decoding to an eighth of the size, which is little more than reading the bits.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import image_transform
from PIL import Image

from vlp.data.pictures import Picture
from vlp.data.transforms import AugmentOptions, PictureFormat, crop_box, largest_reduction, train_transform

SIDE = 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # open_clip's default
SIZES = ((640, 480), (1280, 960), (341, 256))
OPTIONS = AugmentOptions()  # crops of 90 to 100 % of the area, as open_clip's


def made_picture(width: int, height: int, seed: int) -> Image.Image:
    """Like a photo in what JPEG feels of it: soft fields, detail that falls off with its fineness, edges, grain."""
    generator = np.random.default_rng(seed)

    def field(cells: int) -> np.ndarray:
        grid = generator.normal(size=(3, cells, round(cells * width / height) + 1)).astype(np.float32)
        layers = [Image.fromarray(layer).resize((width, height), Image.Resampling.BICUBIC) for layer in grid]
        return np.stack(layers, axis=-1)

    pixels = 128 + 35 * field(4).mean(-1, keepdims=True) + 10 * field(5)
    cells = 8
    while cells < min(width, height) / 1.5:
        detail = field(cells)
        pixels = pixels + 90 * cells**-0.6 * (0.9 * detail.mean(-1, keepdims=True) + 0.2 * detail)
        cells *= 2
    rows, columns = np.mgrid[:height, :width] / height
    for _ in range(14):  # turned rectangles, half transparent
        x, y, w, h, angle = generator.random(5)
        across = (columns - x * width / height) * np.cos(7 * angle) + (rows - y) * np.sin(7 * angle)
        down = (rows - y) * np.cos(7 * angle) - (columns - x * width / height) * np.sin(7 * angle)
        inside = (np.abs(across) < 0.05 + 0.2 * w) & (np.abs(down) < 0.05 + 0.2 * h)
        pixels[inside] = 0.6 * pixels[inside] + generator.uniform(0, 110, 3)
    pixels += 4 * generator.normal(size=(height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> bytes:
    """4:2:0, as most photos on the web."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality, subsampling=2)
    return buffer.getvalue()


def seconds(work: Callable[[bytes, int], Any], pictures: list[bytes]) -> float:
    """CPU seconds for all pictures."""
    start = time.process_time()
    for number, data in enumerate(pictures):
        work(data, number)
    return time.process_time() - start


def methods() -> dict[str, Callable[[bytes, int], Any]]:
    """Name -> (bytes, number that seeds the crop) -> tensor or pixels."""
    theirs = image_transform(SIDE, is_train=True)
    picture_format = PictureFormat((SIDE, SIDE), MEAN, STD)
    exact, fast = (train_transform(picture_format, OPTIONS, mode) for mode in ("exact", "fast"))

    def reduction(picture: Picture, number: int) -> int:
        box = crop_box(picture.width, picture.height, OPTIONS, np.random.default_rng(number))
        return largest_reduction(box, (SIDE, SIDE))

    def decoded_fast(data: bytes, number: int) -> np.ndarray:
        picture = Picture(data)
        return picture.pixels(reduction(picture, number))[0]

    return {
        "open_clip": lambda data, _: theirs(Image.open(io.BytesIO(data))),
        "exact": lambda data, number: exact(data, np.random.default_rng(number))[0],
        "fast": lambda data, number: fast(data, np.random.default_rng(number))[0],
        "exact decoding": lambda data, _: Picture(data).pixels(),
        "fast decoding": decoded_fast,
        "bits": lambda data, _: Picture(data).pixels(8),
    }


def mean_difference(method: Callable[[bytes, int], torch.Tensor], pictures: list[bytes]) -> float:
    """Of 255, from Pillow's crop and bicubic resize."""
    gaps = []
    for number, data in enumerate(pictures):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        box = crop_box(image.width, image.height, OPTIONS, np.random.default_rng(number))
        crop = image.crop(box).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        ours = method(data, number).permute(1, 2, 0).numpy().astype(int)
        gaps.append(float(np.abs(ours - np.asarray(crop)).mean()))
    return statistics.fmean(gaps)


def compare(pictures: list[bytes], repeats: int) -> dict[str, Any]:
    """Milliseconds a picture (medians), ratios with their spread, differences."""
    works = methods()
    for work in works.values():
        seconds(work, pictures[:2])
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats):
        names = list(works)
        for name in names if repeat % 2 else reversed(names):
            times[name].append(seconds(works[name], pictures) / len(pictures))
    row: dict[str, Any] = {
        "pictures": len(pictures),
        "mean_kilobytes": statistics.fmean(map(len, pictures)) / 1000,
        "milliseconds": {name: 1000 * statistics.median(values) for name, values in times.items()},
    }
    for mode in ("exact", "fast"):
        ratios = [theirs / ours for theirs, ours in zip(times["open_clip"], times[mode], strict=True)]
        row[mode] = {
            "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
            "mae": mean_difference(works[mode], pictures),
        }
    return row


def print_row(name: str, row: dict[str, Any]) -> None:
    spent = row["milliseconds"]
    print(f"{name}: {row['pictures']} pictures of {row['mean_kilobytes']:.0f} kB, bits {spent['bits']:.2f} ms each")
    print(f"  open_clip {1000 / spent['open_clip']:7,.0f}/s")
    for mode in ("exact", "fast"):
        ratio = "{median:.2f} ({min:.2f}-{max:.2f})".format(**row[mode]["ratio"])
        decoding = f"{spent[f'{mode} decoding'] / spent[mode]:.0%}"
        speed, mae = 1000 / spent[mode], row[mode]["mae"]
        print(f"  {mode:9} {speed:7,.0f}/s  ratio {ratio}  mae {mae:.3f}  decoding {decoding}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=Path, metavar="DIR", help="JPEG files to use as they are (default: made pictures)")
    add("--count", type=int, default=12, help="pictures of each size (default: %(default)s)")
    add("--quality", type=int, default=90, help="of the made JPEGs (default: %(default)s)")
    add("--repeats", type=int, default=7, help="alternated repeats (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in the workers of a loader

    sets: dict[str, list[bytes]] = {}
    if arguments.images:
        paths = sorted(path for path in arguments.images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
        if not paths:
            parser.error(f"--images: no .jpg files in {arguments.images}")
        sets[str(arguments.images)] = [path.read_bytes() for path in paths[: arguments.count]]
    else:
        for width, height in SIZES:
            made = (made_picture(width, height, seed) for seed in range(arguments.count))
            sets[f"{width}x{height}"] = [jpeg(image, arguments.quality) for image in made]
    rows = {}
    for name, pictures in sets.items():
        rows[name] = compare(pictures, arguments.repeats)
        print_row(name, rows[name])
    if arguments.json:
        result = {
            "rows": rows,
            "repeats": arguments.repeats,
            "quality": None if arguments.images else arguments.quality,
            "processor": torch.backends.cpu.get_cpu_capability(),
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("open_clip_torch", "pillow", "simplejpeg", "torch", "torchvision")
            },
            "python": platform.python_version(),
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
