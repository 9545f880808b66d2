"""What ``vlp caption MODEL SHARDS`` takes and does; the command itself stands in `vlp.commands.caption`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools._console import write_json
from data_tools._language_models.flags import add_share_arguments, part_of
from data_tools._map_shards import Means, add_engine_arguments
from vlp.types import UserError

if TYPE_CHECKING:
    from data_tools._captions.job import Job
    from vlp.generation_options import GenerationOptions

FLAGS = ("name", "root", "samples", "report", "workers", "ray", "part", "gpus")
"""What has an effect on shards only."""


def add_arguments(group: Any) -> None:
    add = group.add_argument
    add("--name", help="name of the layer (default captions)")
    add("--root", metavar="DIR", help="where layers lie (default: 'layers' beside the shards)")
    add("--samples", type=int, metavar="N", help="caption the first N samples only: for a look; the rest can follow")
    add("--report", type=Path, metavar="FILE", help="write counts and a sample as one self-contained HTML page")
    add_engine_arguments(group)
    add_share_arguments(group)


def run(arguments: argparse.Namespace, options: GenerationOptions) -> None:
    """Write the layer, or what it lacks."""
    from data_tools.verify import check_output

    file = None if arguments.json is None else Path(arguments.json)
    if arguments.json == "-":
        raise UserError("--json - is for captions of pictures: of shards name a file, which vlp report FILE shows")
    check_output("--json", file)
    check_output("--report", arguments.report)
    if arguments.samples is not None and arguments.samples < 1:
        raise UserError(f"--samples {arguments.samples} must be at least 1")
    if arguments.gpus is not None and (arguments.ray is None or arguments.gpus < 0):
        raise UserError(f"--gpus {arguments.gpus:g} has no effect without --ray: it is what Ray gives each task")
    paths = _shards(arguments)
    if not paths:
        print(f"--part {arguments.part}: no shard falls into this part")
        return
    job = _job(arguments, options)
    from data_tools._captions.job import refuse_others
    from data_tools._captions.layer import write_captions

    refuse_others(paths, job)
    means = Means(arguments.workers, arguments.ray, arguments.gpus)
    report = write_captions(paths, job, means, arguments.samples)
    if arguments.json or arguments.report:
        from data_tools._captions.sheet import sheet

        content = sheet(report, job)
        if file:
            write_json(file, content)
        if arguments.report:
            from vlp.evaluation.report.captions_sheet import write_page

            write_page(content, arguments.report)
    report.show(job)
    if arguments.samples is not None:
        print(f"--samples {arguments.samples}: the same command without it captions the rest")


def _shards(arguments: argparse.Namespace) -> list[str]:
    from vlp.data.layer_files import check_file_names
    from vlp.data.layers import LayerWriter
    from vlp.data.shards import find_shards

    LayerWriter(arguments.root, _name(arguments), {})  # refuses a name that cannot be used
    paths = find_shards(arguments.inputs, named="SHARDS")
    check_file_names(paths, arguments.root)
    return part_of(paths, arguments.part)


def _job(arguments: argparse.Namespace, options: GenerationOptions) -> Job:
    """What is asked for, tried on one picture, so that what cannot be written is refused before processes start."""
    import torch

    from data_tools._captions.job import Job, loaded
    from vlp.generation import captions_of

    model, weights = loaded(arguments.model)
    pixels = torch.zeros(1, 3, *model.picture_format.size, dtype=torch.uint8)
    captions_of(model, pixels, options)
    return Job(arguments.model, weights, options, arguments.batch_size, arguments.root, _name(arguments))


def _name(arguments: argparse.Namespace) -> str:
    return "captions" if arguments.name is None else str(arguments.name)
