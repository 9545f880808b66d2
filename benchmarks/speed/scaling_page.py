"""Tables of docs/scaling.md, from what `scaling.py` found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scaling_estimate import FLOAT, Machine, Model, Step, gradient_bytes, step, text_bytes

START, END = "<!-- tables: written by benchmarks/speed/scaling.py -->", "<!-- end of tables -->"
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
GLOBAL_BATCH = 32_768
ROWS = {"ViT-B-32": 1024, "ViT-B-16": 512, "ViT-L-14": 128}
OTHER_MACHINES = {
    "as above": {},
    "MFU 30 %": {"mfu": 0.3},
    "MFU 55 %": {"mfu": 0.55},
    "a quarter of the network (100 Gb/s a GPU)": {"across": 0.8 * 100e9},
    "no collective beside a pass": {"hidden": 0.0},
    "the loss's products in TF32": {"fp32_peak": 494e12},
}


def tables(result: dict[str, Any]) -> str:
    """Markdown of all of them."""
    machine = Machine(**result["machine"])
    models = [Model(**found) for found in result["models"].values()]
    parts = [
        "### Bytes that a process sends: measured and computed",
        _table(("", "measured", "computed", "measured / computed"), _traffic(result)),
        "### Sizes of the models, counted",
        _table(
            (
                "",
                "weights",
                "width",
                "GFLOP of a picture, forward",
                "of a text",
                "kernels of a step",
                "MB saved a pair",
            ),
            _sizes(models),
        ),
    ]
    for model in models:
        rows = ROWS.get(model.name, 256)
        parts += [
            f"### {model.name}",
            _table(
                (
                    "GPUs",
                    f"global batch {GLOBAL_BATCH:,}: vlp, samples/s",
                    "of linear",
                    "open_clip's loss",
                    f"{rows:,} a GPU: vlp, samples/s",
                    "of linear",
                    "open_clip's loss",
                ),
                _scaling(model, machine, rows),
            ),
        ]
    model = models[0]
    rows = ROWS.get(model.name, 256)
    parts += [
        f"### Where a step goes: {model.name}, {rows:,} a GPU, milliseconds",
        _table(
            ("GPUs", "", "towers", "loss", "features", "gradients", "optimiser", "in all"), _parts(model, machine, rows)
        ),
        f"### Engines: {rows:,} pairs of {model.name} a GPU"
        + (f", {ROWS.get(models[-1].name, 256):,} of {models[-1].name}" if len(models) > 1 else ""),
        _table(
            ("", "GPUs", *(f"{engine}: {what}" for engine in ENGINES for what in ("samples/s", "GB of states"))),
            _engines([models[0], *models[1:][-1:]], machine),
        ),
        f"### Other assumptions: {model.name}, {rows:,} a GPU, samples a second of vlp (of open_clip's loss)",
        _table(("", *(f"{gpus:,} GPUs" for gpus in (8, 64, 1024))), _sensitivity(model, result["machine"], rows)),
    ]
    return "\n\n".join(parts)


ENGINES = ("ddp", "zero1", "fsdp2")


def _traffic(result: dict[str, Any]) -> Iterator[Sequence[str]]:
    rows, width = result["rows"], result["width"]
    for world, by_engine in result["traffic"].items():
        gpus = int(world)
        loss = next(iter(by_engine.values()))
        one = text_bytes(width, gpus, rows)
        sums = 2 * (gpus - 1) * rows * FLOAT + (gpus - 1) * rows * FLOAT
        for name, measured, computed in (
            ("texts gathered", loss["gather"], one),
            ("their gradient scattered", loss["scatter"], one),
            ("sums of the softmax", loss["sums"], sums),
            ("open_clip's loss: both features, there and back", loss["open_clip"], 4 * one),
        ):
            yield _measured(f"{world} processes, {name}", measured, computed)
        for engine, found in by_engine.items():
            computed = gloo_bytes(int(found["weights"]), gpus, engine) + 2 * one + sums
            yield _measured(f"{world} processes, a step with {engine}", found["step"], computed)


def gloo_bytes(weights: int, gpus: int, engine: str) -> float:
    """`gradient_bytes` in fp32 and over gloo, which scatters sums by way of an all-reduce."""
    part = FLOAT * weights * (gpus - 1) / gpus
    # Of the last group of FSDP2, which is most of a tiny model, the weights stay whole between the passes.
    return 3 * part if engine == "fsdp2" else gradient_bytes(weights, gpus, engine)


def _measured(name: str, measured: float, computed: float) -> Sequence[str]:
    return name, f"{measured:,.0f}", f"{computed:,.0f}", f"{measured / computed:.3f}"


def _sizes(models: Sequence[Model]) -> Iterator[Sequence[str]]:
    for m in models:
        flops = f"{m.image / 1e9:.2f}", f"{m.text / 1e9:.2f}"
        yield m.name, f"{m.weights:,}", str(m.width), *flops, f"{m.launches:,}", f"{m.saved / 1e6:.0f}"


def _scaling(model: Model, machine: Machine, rows: int) -> Iterator[Sequence[str]]:
    for gpus in GPUS:
        cells = [f"{gpus:,}"]
        for per_gpu in (GLOBAL_BATCH // gpus, rows):
            ours, theirs = (step(model, machine, gpus, per_gpu, open_clip=peer) for peer in (False, True))
            cells += [_rate(ours, machine, model), f"{_efficiency(ours, model, machine, gpus):.0%}", _rate(theirs)]
        yield cells


def _rate(found: Step, machine: Machine | None = None, model: Model | None = None) -> str:
    """Three digits; marked where the host, not the GPU, sets the pace."""
    bound = machine is not None and model is not None and is_launch_bound(found, model, machine)
    return f"{float(f'{found.samples_per_second:.3g}'):,.0f}{'*' if bound else ''}"


def is_launch_bound(found: Step, model: Model, machine: Machine) -> bool:
    return found.passes == 1 and found.towers <= model.launches * machine.launch


def _efficiency(found: Step, model: Model, machine: Machine, gpus: int) -> float:
    """Of as many single GPUs with nothing but arithmetic to do."""
    alone = machine.peak * machine.mfu / (3 * (model.image + model.text))
    return found.samples_per_second / (gpus * alone)


def _parts(model: Model, machine: Machine, rows: int) -> Iterator[Sequence[str]]:
    for gpus in (8, 64, 1024):
        for name, peer in (("vlp", False), ("open_clip's loss", True)):
            found = step(model, machine, gpus, rows, open_clip=peer)
            parts = (found.towers, found.loss, found.features, found.gradients, found.optimiser, found.seconds)
            yield f"{gpus:,}", name, *(f"{1000 * part:.1f}" for part in parts)


def _engines(models: Sequence[Model], machine: Machine) -> Iterator[Sequence[str]]:
    for model in models:
        for gpus in (8, 64, 1024):
            cells = [model.name, f"{gpus:,}"]
            for engine in ENGINES:
                found = step(model, machine, gpus, ROWS.get(model.name, 256), engine)
                cells += [_rate(found), f"{states(model, gpus, engine) / 1e9:.2f}"]
            yield cells


def states(model: Model, gpus: int, engine: str) -> float:
    """Bytes of weights, gradients and moments of a GPU, fp32."""
    whole, parted = {"ddp": (16, 0), "zero1": (8, 8), "fsdp2": (0, 16)}[engine]
    return model.weights * (whole + parted / gpus)


def _sensitivity(model: Model, machine: dict[str, Any], rows: int) -> Iterator[Sequence[str]]:
    for name, changes in OTHER_MACHINES.items():
        other = Machine(**{**machine, **changes})
        cells = [name]
        for gpus in (8, 64, 1024):
            ours, theirs = (step(model, other, gpus, rows, open_clip=peer) for peer in (False, True))
            cells.append(f"{_rate(ours)} ({_rate(theirs)})")
        yield cells


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def write(page: Path, result: dict[str, Any]) -> None:
    """Put the tables between the markers of ``page``."""
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n\n{tables(result)}\n\n{END}{after}", encoding="utf-8")
