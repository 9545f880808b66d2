"""Data sets of millions of tiny samples, made in seconds: real tars, real indexes, little disk.

A few different tars are written and indexed; the others are hard links to them with copies of their index.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizer import made_captions

from data_tools.index import write_index
from vlp.data.write import TarFile, encode_image

DIFFERENT = 8
KEYS = "{shard:05d}{row:05d}"


def write(folder: Path, shards: int, samples_per_shard: int) -> Path:
    """``folder`` with tars of PNG pictures of 1x1 to 8x8 pixels and captions, and their index in ``folder/index``."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    pictures = []
    for number in range(256):
        pixels = generator.integers(0, 256, (1 + number % 8, 1 + number // 8 % 8, 3), dtype=np.uint8)
        pictures.append(encode_image(Image.fromarray(pixels), "png"))
    captions = [caption.encode() for caption in made_captions(min(shards, DIFFERENT) * samples_per_shard)]
    for shard in range(min(shards, DIFFERENT)):
        with TarFile(folder / f"{shard:05d}.tar") as tar:
            for row in range(samples_per_shard):
                number = shard * samples_per_shard + row
                members = {"png": pictures[number % len(pictures)], "txt": captions[number]}
                tar.write(KEYS.format(shard=shard, row=row), members)
    write_index([str(folder)])
    for shard in range(DIFFERENT, shards):
        os.link(folder / f"{shard % DIFFERENT:05d}.tar", folder / f"{shard:05d}.tar")
        index = folder / "index"
        shutil.copy(index / f"{shard % DIFFERENT:05d}.parquet", index / f"{shard:05d}.parquet")
    summary = folder / "index" / "shards.json"
    entries = list(json.loads(summary.read_text()).values())
    summary.write_text(json.dumps({f"{shard:05d}": entries[shard % DIFFERENT] for shard in range(shards)}))
    return folder


def without_index(folder: Path, to: Path, counted: bool) -> Path:
    """The same shards in ``to`` without an index; ``counted``: with webdataset's ``sizes.json`` instead."""
    to.mkdir()
    for tar in sorted(folder.glob("*.tar")):
        os.link(tar, to / tar.name)
    if counted:
        entries = json.loads((folder / "index" / "shards.json").read_text())
        (to / "sizes.json").write_text(json.dumps({f"{name}.tar": entry["samples"] for name, entry in entries.items()}))
    return to
