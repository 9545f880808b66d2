"""Embeddings of pictures and texts as Parquet or npy, for vlp search and for tools of one's own.

  vlp embed MODEL data/train --output embeddings              shards: the pictures, and their captions as a column
  vlp embed MODEL data/train --texts --output embeddings      the captions, too: what a picture is asked for
  vlp embed MODEL photos captions.txt --output embeddings     folders of pictures, and a text a line

Each shard, and each 10,000 pictures or texts, become a file. The same command again embeds what is missing and nothing
else. What cannot be used is left out, counted and named; of folders of pictures the exit code is then 1. Under torchrun
each process embeds a share of the files.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from vlp.commands import _model
from vlp.types import UserError

if TYPE_CHECKING:
    from vlp.encoders.two_tower import TwoTower
    from vlp.search.collect import Outcome
    from vlp.search.job import Job

_PATIENCE = timedelta(days=7)  # the first process to finish waits for the last


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from data_tools._language_models.flags import add_share_arguments
    from data_tools._map_shards import add_engine_arguments

    add = parser.add_argument
    _model.add_arguments(parser)
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="shards (.tar, a folder or pattern of them, also remote), folders of pictures, files of texts "
        "(.txt, .csv, .tsv, .parquet)",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="where the embeddings go")
    add("--files", choices=("parquet", "npy"), default="parquet", help="kind of files (default: %(default)s)")
    add("--dtype", choices=("float16", "float32"), default="float16", help="of the numbers (default: %(default)s)")
    add("--texts", action="store_true", help="of shards: embed the captions, too")
    add("--caption", metavar="SOURCE", default="txt", help="of shards: txt or json.FIELD (default: %(default)s)")
    add("--column", metavar="NAME", help="of tables of texts: the column (default: the only one, text or caption)")
    add("--batch-size", type=int, default=256, metavar="N", help="pictures at once (default: %(default)s)")
    add_engine_arguments(parser)
    add_share_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """
    Raises:
        UserError: inputs, a model or options that cannot be used, or a directory of other embeddings.
    """
    from vlp import distributed, rendezvous

    _model.heed(arguments)
    rendezvous.join(_PATIENCE)
    try:
        with distributed.failing_together():
            outcome, job, folders = _embed(arguments)
        _finish(outcome, job, folders)
    finally:
        distributed.leave()


def _embed(arguments: argparse.Namespace) -> tuple[Outcome, Job, set[str]]:
    from data_tools._language_models.flags import part_of
    from data_tools._map_shards import Means
    from vlp import distributed
    from vlp.search.collect import drop_stale, embed
    from vlp.search.parts import is_texts, parts_of, source_of

    _check(arguments)
    parts = parts_of(arguments.inputs, arguments.column)
    if arguments.texts and all(source_of(part) != part for part in parts):
        raise UserError("--texts has no effect here: it is for the captions of shards, leave it away")
    share = part_of(parts, arguments.part)
    model, job = _job(arguments)
    job.claim()
    if distributed.rank() == 0:
        _model.tell(model)
    drop_stale(job, parts)
    world = distributed.world_size()
    means = Means(1 if world > 1 else arguments.workers, arguments.ray, arguments.gpus)
    outcome = embed(job, share[distributed.rank() :: world], means)
    sources = {source_of(part) for part in parts if source_of(part) != part}
    return outcome, job, {source for source in sources if not is_texts(source)}


def _check(arguments: argparse.Namespace) -> None:
    from data_tools._console import check_caption_source
    from vlp import distributed
    from vlp.data.store import is_remote

    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size} must be at least 1")
    if arguments.gpus is not None and (arguments.ray is None or arguments.gpus < 0):
        raise UserError(f"--gpus {arguments.gpus:g} has no effect without --ray: it is what Ray gives each task")
    if is_remote(str(arguments.output)):
        raise UserError(f"--output {arguments.output} is not on this machine: name a folder, and copy it then")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise UserError(f"--output {arguments.output} is a file: name a folder")
    check_caption_source(arguments.caption)
    if distributed.world_size() > 1:
        for name in ("workers", "ray", "part"):
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name} has no effect under torchrun, whose processes share the files: remove one")


def _job(arguments: argparse.Namespace) -> tuple[TwoTower, Job]:
    from vlp import distributed
    from vlp.encoders import inputs
    from vlp.search.job import Job
    from vlp.search.model import loaded, place_of

    name = place_of(arguments.model)
    device = str(distributed.device()) if distributed.world_size() > 1 else "auto"
    model, digest = loaded(name, device)
    import torch

    with torch.no_grad():
        dimension = int(model.encode_text(model.tokenizer(["a"]).to(model.device)).shape[1])
    job = Job(
        directory=Path(os.path.abspath(arguments.output)),
        model=name,
        digest=digest,
        dimension=dimension,
        preprocessing=inputs.as_dict(model),
        dtype=arguments.dtype,
        files=arguments.files,
        captions=arguments.caption,
        with_captions=arguments.texts,
        column=arguments.column,
        batch_size=arguments.batch_size,
        device=device,
    )
    return model, job


def _finish(own: Outcome, job: Job, folders: set[str]) -> None:
    """Sum up over the processes; all end with the same exit code."""
    from vlp import distributed
    from vlp.search.collect import Outcome, write_counts
    from vlp.search.embed import Embedded

    everyone = distributed.from_all_ranks(own)
    found = sum((one.found for one in everyone), Embedded())
    with distributed.failing_together():
        if distributed.rank() == 0:
            write_counts(job)
            Outcome(found, max(one.seconds for one in everyone)).show(job)
    if not found.pictures and not found.texts and found.skipped:
        first = found.skipped[0]
        raise UserError(f"nothing could be embedded ({first.kind}: {first.where}): run vlp data verify")
    if any(one.where.startswith(f"{folder}: ") for one in found.skipped for folder in folders):
        sys.exit(1)
