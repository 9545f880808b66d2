"""Find strong alternative pictures by embedding, as a layer beside the shards: NegCLIP's neighbours.

    vlp data neighbours data/train --model ViT-B-32:openai

For each picture the layer names the N most similar others, as SHARD/KEY, the nearest first. Left out are those that
would be no negatives: pictures of the same bytes, or nearly the same look, and samples that share a caption with it,
which count as equal if they differ in case, spaces or punctuation at the ends only.

Pass one embeds all pictures (float16, under ROOT/NAME/.embeddings), pass two makes the index where the search is
approximate, pass three searches and writes the layer. A run that was killed goes on where it was. Several machines:
`--part I/N` on each embeds a part of the shards; the command without it does the rest.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools._console import by_kind, write_json
from data_tools._map_shards import add_engine_arguments, map_shards
from vlp.types import Skipped, UserError

if TYPE_CHECKING:
    from data_tools._neighbours.index import IndexOptions
    from data_tools._neighbours.job import Job
    from data_tools._neighbours.search import Counts

LOUD_SHARE = 0.5
NUM_EXAMPLES = 3
LEAST_RECALL = 0.95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from data_tools._language_models.flags import add_share_arguments

    add = parser.add_argument
    add("shards", nargs="+", metavar="SHARDS", help="tars, directories of tars, globs, brace patterns")
    add("--model", required=True, metavar="MODEL", help="whose image tower embeds: a run, a checkpoint, NAME:TAG ...")
    add("--name", default="neighbours", help="name of the layer (default neighbours)")
    add("--root", metavar="DIR", help="where layers and embeddings lie (default: 'layers' beside the shards)")
    add("--number", type=int, default=3, metavar="N", help="neighbours of each picture (default 3, as NegCLIP)")
    add(
        "--caption",
        nargs="+",
        default=["txt"],
        metavar="SOURCE",
        help="where the captions stand that neighbours may not share: txt, json.FIELD or several (default txt)",
    )
    add(
        "--duplicate-above",
        type=float,
        default=0.97,
        metavar="X",
        help="leave out pictures that are more similar than X (a cosine) and look the same in a copy of 4 x 4 pixels; "
        "1: only those of the same bytes (default 0.97)",
    )
    add(
        "--index",
        choices=("exact", "ivf", "ivfpq"),
        help="how to search: exact compares all pairs, ivf and ivfpq only with the nearest lists of pictures, of which "
        "they keep a byte a dimension or an eighth of that (default: by the number of pictures, exact up to 200,000, "
        "ivf up to 20 million)",
    )
    add("--probes", type=int, metavar="N", help="with ivf and ivfpq: lists that are searched (default 32)")
    add("--batch-size", type=int, default=64, metavar="N", help="pictures that the model sees at once (default 64)")
    add("--device", default="auto", help="where the model runs: cpu, cuda, cuda:1 or auto (default auto)")
    add("--dry-run", action="store_true", help="only say what it costs: bytes, memory and hours, measured here")
    add("--json", type=Path, metavar="FILE", help="write all counts and a sample, which vlp report FILE shows")
    add("--report", type=Path, metavar="FILE", help="write the same as one self-contained HTML page")
    add_engine_arguments(parser)
    add_share_arguments(parser)


@dataclass
class NeighboursReport:
    """What was found; ``recall`` of an approximate search only."""

    counts: Counts
    options: IndexOptions
    folder: Path
    recall: float | None = None
    skipped: list[Skipped] = field(default_factory=list)

    def show(self, job: Job) -> None:
        """Print the counts and the reasons, and loudly what looks wrong."""
        counts = self.counts
        having = counts.usable - counts.without
        print(
            f"{having:,} of {counts.samples:,} samples have neighbours, {counts.neighbours:,} in all; "
            f"{counts.fewer:,} have fewer than {job.number}"
        )
        for kind, number, names in by_kind(self.skipped):
            print(f"  left out {number:,}, {kind}: {', '.join(names)}")
        if counts.without:
            more = " ..." if counts.without > NUM_EXAMPLES else ""
            print(f"  without a neighbour {counts.without:,}: {', '.join(counts.named[:NUM_EXAMPLES])}{more}")
        for reason, number in counts.passed_over.most_common():
            print(f"  passed over {number:>11,}  {reason}")
        if self.recall is not None:
            print(f"recall {self.recall:.1%} of the true neighbours, on samples compared with all pictures")
            if self.recall < LEAST_RECALL:
                cure = f"search more lists, with --probes above {self.options.probes}"
                finer = ", or keep finer codes, with --index ivf" if self.options.kind == "ivfpq" else ""
                print(f"WARNING: that is below {LEAST_RECALL:.0%}: {cure}{finer}")
        if counts.usable and (share := counts.without / counts.usable) > LOUD_SHARE:
            print(f"WARNING: {share:.0%} of the samples have no neighbour: look at the reasons, and at --report FILE")
        if (duplicates := counts.passed_over["near duplicate"]) > LOUD_SHARE * counts.usable:
            print(
                f"WARNING: {duplicates:,} candidates were passed over as near duplicates: look at them with "
                f"--report FILE, and raise --duplicate-above {job.duplicate_above:g} if they are none"
            )
        if counts.neighbours:
            print(f"train with data.neighbours: layer.{job.name}")


def run(arguments: argparse.Namespace) -> None:
    from data_tools._language_models.flags import part_of
    from data_tools.verify import check_output

    check_output("--json", arguments.json)
    check_output("--report", arguments.report)
    for wanted, idle in (
        ("dry_run", ("part", "ray", "json", "report")),
        ("part", ("index", "probes", "json", "report")),
    ):
        given = [f"--{name}" for name in idle if getattr(arguments, name) is not None]
        if getattr(arguments, wanted) and given:
            raise UserError(f"{given[0]} has no effect with --{wanted.replace('_', '-')}: leave it away")
    job, paths = _job(arguments), _shards(arguments)
    if arguments.dry_run:
        for line in dry_run(paths, job, arguments.index, arguments.probes, arguments.workers):
            print(line)
        return
    if arguments.part is not None:
        part = part_of(paths, arguments.part)
        embedded = embed(part, job, arguments.workers, arguments.ray, arguments.gpus)
        pictures = sum(one.num_usable for one in embedded)
        done = f"{pictures:,} pictures of {len(part):,} shards are embedded"
        print(f"--part {arguments.part}: {done}; when all parts are, give the command without --part")
        return
    report = write_neighbours(
        paths, job, arguments.index, arguments.probes, arguments.workers, arguments.ray, arguments.gpus
    )
    if arguments.json or arguments.report:
        _write_sheet(paths, job, report, arguments.json, arguments.report)
    report.show(job)


def _job(arguments: argparse.Namespace) -> Job:
    """What is asked for, refused before anything is read if it cannot be."""
    from data_tools._console import check_caption_source
    from data_tools._neighbours.job import Job
    from vlp.data.layers import LayerWriter

    for flag, value in (
        ("--number", arguments.number),
        ("--batch-size", arguments.batch_size),
        ("--probes", arguments.probes),
    ):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value} must be at least 1")
    if not 0 < arguments.duplicate_above <= 1:
        raise UserError(f"--duplicate-above {arguments.duplicate_above:g} is a cosine: give one above 0, or 1 for none")
    for source in arguments.caption:
        check_caption_source(source)
    if arguments.gpus is not None and (arguments.ray is None or arguments.gpus < 0):
        raise UserError(f"--gpus {arguments.gpus:g} has no effect without --ray: it is what Ray gives each task")
    LayerWriter(arguments.root, arguments.name, {})  # refuses a name that cannot be used
    from data_tools._neighbours import model, searchers  # noqa: F401 - refuses where faiss is missing

    tower, weights = model.loaded(arguments.model, arguments.device)
    return Job(
        model=arguments.model,
        weights=weights,
        dim=tower.openclip_config["model_cfg"]["embed_dim"],
        captions=tuple(dict.fromkeys(arguments.caption)),
        number=arguments.number,
        duplicate_above=arguments.duplicate_above,
        root=arguments.root,
        name=arguments.name,
        batch_size=arguments.batch_size,
        device=arguments.device,
    )


def _shards(arguments: argparse.Namespace) -> list[str]:
    from data_tools._neighbours.job import TOOL, in_order
    from vlp.data.layer_files import refuse_layers_of_others
    from vlp.data.shards import find_shards

    paths = in_order(find_shards(arguments.shards, named="SHARDS"))
    refuse_layers_of_others(paths, arguments.name, arguments.root, TOOL)
    return paths


def embed(paths: list[str], job: Job, workers: int | None, ray: str | None, gpus: float | None) -> list[Any]:
    """Pass one: what `embed.embed_shard` tells of each shard."""
    from data_tools._models import num_processes
    from data_tools._neighbours import embed as pass_one

    if workers is None and ray is None:
        workers = num_processes(job.device)
    work = partial(pass_one.embed_shard, job=job)
    return [found for _, found in map_shards(work, paths, "embedding", workers, ray, gpus)]


def write_neighbours(
    paths: list[str],
    job: Job,
    kind: str | None = None,
    probes: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    gpus: float | None = None,
) -> NeighboursReport:
    """Embed, index and search; the same shards, model and options give the same layer, on any number of workers.

    Raises:
        UserError: no sample can be used, or the index does not fit their number.
    """
    from data_tools._neighbours import corpus, index, search

    embedded = embed(paths, job, workers, ray, gpus)
    skipped = [one for found in embedded for one in found.skipped]
    usable = sum(found.num_usable for found in embedded)
    if not usable:
        example = f" ({skipped[0].kind}: {skipped[0].where})" if skipped else ""
        raise UserError(f"no sample with a picture and a caption in {len(paths)} shards{example}: run vlp data verify")
    options = index.resolve(kind, probes, usable)
    folder = corpus.join(paths, embedded, job)
    if options.kind != "exact":
        index.build(folder, paths, options.kind, workers, ray)
    counts = search.Counts()
    work = partial(search.search_shard, job=job, options=options, folder=folder)
    for _, found in map_shards(work, paths, "searching", workers, ray):
        counts += found
    recall = search.recall(job, options, folder) if options.kind != "exact" else None
    return NeighboursReport(counts, options, folder, recall, skipped)


def dry_run(paths: list[str], job: Job, kind: str | None, probes: int | None, workers: int | None) -> list[str]:
    """What it costs, for a terminal; the shards are counted by their indices or headers.

    Raises:
        UserError: no samples, or the index does not fit their number.
    """
    import os

    from data_tools._neighbours import index, plan

    pictures = sum(found for _, found in map_shards(plan.num_samples, paths, "counting", workers))
    if not pictures:
        raise UserError(f"no sample with a picture in {len(paths)} shards: run vlp data verify on them")
    options = index.resolve(kind, probes, pictures)
    rates = plan.measure(paths, job, options.kind)
    processes = workers or len(os.sched_getaffinity(0))
    return plan.plan(pictures, job.dim, options, job.number, rates).lines(processes, len(paths))


def _write_sheet(paths: list[str], job: Job, report: NeighboursReport, file: Path | None, page: Path | None) -> None:
    from data_tools._neighbours.sheet import sheet

    content = sheet(paths, job, report.options, report.folder, report.counts, report.recall, report.skipped)
    if file:
        write_json(file, content)
    if page:
        from vlp.evaluation.report.neighbours_sheet import write_page

        write_page(content, page)
