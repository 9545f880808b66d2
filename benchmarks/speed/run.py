"""Runs the benchmarks of loader, losses, rewrites and evaluation one after another and writes them into README.md.

    python benchmarks/speed/run.py [pictures tokenizer loader resume memory loss rewrite layer sugarcrepe retrieval
        evaluation classifier generate caption_loss tower step scaling]

All of them take some seventy minutes on two cores, which should have nothing else to do. Each writes
``results/NAME.json``; the table is made of all the files that are there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = (
    *("pictures", "tokenizer", "loader", "resume", "memory", "loss", "rewrite", "layer", "sugarcrepe"),
    *("retrieval", "evaluation"),
    *("classifier", "generate", "caption_loss", "tower", "step", "scaling"),
)
START, END = "<!-- table: written by run.py -->", "<!-- end of table -->"
PICTURES = {
    "640x480": {"exact": 2.7, "fast": 5},
    "1280x960": {"exact": 3.8, "fast": 8},
    "341x256": {"exact": 3.0, "fast": 4},
}
LOSSES = {  # targets of time and memory, by kind and batch and peer
    ("softmax, batch 8192", "open_clip ClipLoss"): ("≥ 1.5", ""),
    ("softmax, batch 8192", "Inf-CL's structure, emulated"): ("≥ 3", ""),
    ("softmax, batch 16384", "open_clip ClipLoss"): ("≥ 1.9", "≥ 12"),
    ("sigmoid, batch 8192", "open_clip SigLipLoss"): ("≥ 1.3", "≥ 6"),
    ("sigmoid, batch 8192", "SigLipLoss in chunks, emulated"): ("", "≥ 2"),
}
STEPS = {  # targets of a step's time, by pair
    "open_clip / vlp, all places": "≥ 1",
    "open_clip / vlp, patch dropout 0.5": "≥ 1.5",
}
Row = tuple[str, str, str]


def spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def pictures(result: dict[str, Any]) -> Iterator[Row]:
    for size, row in result["rows"].items():
        for mode in ("exact", "fast"):
            target = PICTURES.get(size, {}).get(mode)
            reached = f"{spread(row[mode]['ratio'])}; pixels differ by {row[mode]['mae']:.3f} of 255"
            yield f"picture of {size}, {mode}: open_clip / vlp", f"≥ {target}" if target else "", reached


def tokenizer(result: dict[str, Any]) -> Iterator[Row]:
    for state in ("warm", "cold"):
        reached = f"{spread(result[state]['ratio'])}; {result['different_ids']} captions with other ids"
        yield f"tokenizer, {state}: open_clip / vlp", "≥ 2.5" if state == "warm" else "", reached


def loader(result: dict[str, Any]) -> Iterator[Row]:
    for size, row in result["rows"].items():
        for pair, ratio in row["ratio"].items():
            target = "≥ 4" if pair.startswith("open_clip") else "≥ 1.5"
            reached = f"{spread(ratio['clock'])}; of CPU {spread(ratio['cpu'])}"
            yield f"tar to batch, {result['workers']} workers, {size}: {pair}", target, reached
    pixels, rest = ({name: parts[kind] for name, parts in row["bytes"].items()} for kind in ("pixels", "rest"))
    reached = (
        f"{pixels['vlp exact'] / pixels['open_clip']:.3f} for pixels; ids, keys and captions {rest['vlp exact']:.0f}"
    )
    yield "bytes from a worker to the main process: vlp / open_clip", "≤ 0.25", reached


def resume(result: dict[str, Any]) -> Iterator[Row]:
    for kind, rows in result["seconds"].items():
        for position, row in rows.items():
            reached = f"{row['all']:.2f} s ({row['min']:.2f} to {row['max']:.2f})"
            yield f"first batch at sample {int(position):,}, {kind}", "< 0.5 s" if "index," in kind else "", reached
    ways = len(result["digests"])
    yield (
        f"the same batch there in {ways} ways (1, 2, 4 ranks; 0, 1, 2 workers)",
        "yes",
        "yes" if result["same"] else "NO",
    )


def memory(result: dict[str, Any]) -> Iterator[Row]:
    for name, run in result["runs"].items():
        first, last = (sum(point["resident"]) for point in (run["points"][0], run["points"][-1]))
        slope = f"{run['slope']['resident']:+.2f} MiB for each 100,000 samples" if run["slope"] else ""
        reached = f"{first:,.0f} to {last:,.0f} MiB; second half {slope}"
        yield f"resident memory over {run['points'][-1]['samples']:,} samples, {name}", "flat", reached


def loss(result: dict[str, Any]) -> Iterator[Row]:
    for name, row in result["rows"].items():
        for peer, ratio in row["ratio"].items():
            of_time, of_memory = LOSSES.get((name, peer), ("", ""))
            yield f"loss, {name}: CPU, {peer} / vlp", of_time, spread(ratio["seconds"])
            yield f"loss, {name}: memory, {peer} / vlp", of_memory, spread(ratio["mib"])
        half = result["alone"]["batch"] // 2 if "alone" in result else 0
        if name == f"softmax, batch {half}":
            reached = f"{result['alone']['mib'] / max(1, row['losses']['vlp']['mib']):.2f}"
            yield f"loss, softmax: vlp's memory at {2 * half} / at {half}", "≤ 2.2", reached
    ours, theirs = (result["rounding"][name] for name in ("vlp", "open_clip ClipLoss"))
    yield "loss, bf16, scale 100: relative error of the gradient", "≤ 1e-4", f"{ours:.1e}; open_clip {theirs:.1e}"
    for world, found in result["traffic"].items():
        reached = f"{found['ratio']:.2f}; gradients differ by {found['gradient_difference']:.0e}"
        yield f"loss, {world} processes: bytes sent, vlp / open_clip", "≤ 0.6", reached


def rewrite(result: dict[str, Any]) -> Iterator[Row]:
    made = "made" if result["made"] else "real"
    for name, row in result["rows"].items():
        ours, theirs = (f"{row[writer]['per_second']:.1f}" for writer in ("vlp", "generate"))
        reached = f"{ours} and {theirs} texts a second; of CPU {spread(row['ratio'])}"
        yield f"rewrites of {made} captions, {result['model']}, {name}: transformers' generate / vlp", "", reached
    for name, row in result["server"].items():
        yield f"rewrites of {made} captions, {name}", "", f"{row['per_second']:.1f} texts a second"


def layer(result: dict[str, Any]) -> Iterator[Row]:
    for size, row in result["rows"].items():
        without = row["cpu_microseconds"]["txt"]
        reached = f"{spread(row['ratio'])} of {without:.0f} CPU µs a sample"
        yield f"captions from a layer of {result['rewrites']} rewrites, {size}: with / without", "≤ 1.03", reached


def sugarcrepe(result: dict[str, Any]) -> Iterator[Row]:
    about = f"SugarCrepe, {result['model']}, {result['pairs']:,} pairs"
    for peer, row in result["ratio"].items():
        reached = (
            f"{spread(row['clock'])}; of CPU {spread(row['cpu'])}; {row['differing_pairs']} pairs judged otherwise"
        )
        yield f"{about}: {peer} / vlp", "≥ 5" if "fp32" in peer else "", reached


def evaluation(result: dict[str, Any]) -> Iterator[Row]:
    about = f"a whole evaluation of two sets, {result['model']}, {result['pictures']:,} pictures"
    texts = f"{result['captions']:,} captions, {result['prompts']:,} prompts"
    for peer, row in result["ratio"].items():
        reached = f"{spread(row['clock'])}; of CPU {spread(row['cpu'])}; {row['differing_figures']} of {row['figures']}"
        yield f"{about}, {texts}: {peer} / vlp", "≥ 3" if "fp32" in peer else "", f"{reached} figures differ"


def classifier(result: dict[str, Any]) -> Iterator[Row]:
    about = f"embeddings of {result['classes']} classes x {result['templates']} templates, {result['model']}"
    for pair, ratio in result["ratio"].items():
        peer = pair.partition(" / ")[0]
        reached = f"{spread(ratio['clock'])}; of CPU {spread(ratio['cpu'])}; {result['difference'][peer]:.0e} apart"
        yield f"{about}: {pair}", "≥ 100, ≤ 1e-5" if "cache" in pair else "≥ 2.5, ≤ 1e-5", reached


def retrieval(result: dict[str, Any]) -> Iterator[Row]:
    for row in result["rows"]:
        about = f"recalls at 1, 5, 10 of {row['images']:,} pictures and {row['texts']:,} texts"
        ours, theirs = row["vlp"], row.get("CLIP_benchmark")
        if theirs is None:
            yield f"{about}", "seconds", f"{ours['clock']:.1f} s; CLIP_benchmark stopped after {row['stopped']:.0f} s"
            continue
        reached = f"{spread(row['ratio']['cpu'])} of CPU; {spread(row['ratio']['clock'])} by the clock"
        recalls = "the same" if row["difference"] < 1e-6 else f"{row['difference']:.0e} APART"
        seconds = f"{ours['clock']:.2f} and {theirs['clock']:.1f} s"
        yield f"{about}: CLIP_benchmark / vlp", "≥ 10", f"{reached}; {seconds}; recalls {recalls}"
        yield f"{about}: memory, CLIP_benchmark / vlp", "≥ 5", spread(row["ratio"]["mib"])
    for row in result["alone"]:
        about = f"recalls of {row['number']:,} pictures and {row['number']:,} texts: memory beside the features"
        yield about, "flat", f"{row['mib']:.0f} MiB; {row['clock']:.0f} s"


def generate(result: dict[str, Any]) -> Iterator[Row]:
    about = f"captions, {result['model']}, {result['pictures']} pictures, {result['length']} ids"
    for search, row in result["rows"].items():
        reached = f"{spread(row['ratio']['clock'])}; of CPU {spread(row['ratio']['cpu'])}"
        same = f"{row['same']} of {row['ended']} texts the same"
        yield f"{about}, {search}: open_clip / vlp", "≥ 5" if "beams" in search else "", f"{reached}; {same}"


def caption_loss(result: dict[str, Any]) -> Iterator[Row]:
    for name, row in result["rows"].items():
        for peer, ratio in row["ratio"].items():
            dense = peer.startswith("dense")
            about = f"captioning loss, {name}"
            yield f"{about}: CPU, {peer} / vlp", "≥ 1" if dense else "", spread(ratio["seconds"])
            yield f"{about}: memory, {peer} / vlp", "≥ 8" if dense else "", spread(ratio["mib"])


def tower(result: dict[str, Any]) -> Iterator[Row]:
    for name, row in result["rows"].items():
        reached = f"{spread(row['ratio']['clock'])}; of CPU {spread(row['ratio']['cpu'])}"
        differ = ", ".join(f"{kind} {value:.0e}" for kind, value in row["difference"].items())
        about = f"text tower of {result['model']}, {name}, {row['mean']:.1f} of {result['places']} ids"
        yield f"{about}: open_clip / vlp", "≥ 1.6, ≤ 1e-5", f"{reached}; differences: {differ}"


def step(result: dict[str, Any]) -> Iterator[Row]:
    for name, row in result["rows"].items():
        about = f"training step, {name}, {result['precision']}"
        for pair, ratio in row["ratio"].items():
            peer, ours = (row["loops"][loop] for loop in pair.split(" / "))
            rates = (
                f"{peer['samples_per_second']['median']:.4g} and {ours['samples_per_second']['median']:.4g} samples/s"
            )
            reached = f"{spread(ratio['clock'])}; of CPU {spread(ratio['cpu'])}; {rates}"
            memory = f"memory {peer['mib'] / ours['mib']:.2f}"
            mfu = f"; MFU {peer['mfu']:.1%} and {ours['mfu']:.1%}" if ours["mfu"] else ""
            yield f"{about}: {pair}", STEPS.get(pair, ""), f"{reached}; {memory}{mfu}"
        if row["loss_difference"] is not None:
            steps = len(row["loops"]["open_clip"]["losses"])
            reached = f"{row['loss_difference']:.0e}"
            target = "≤ 1e-4" if result["precision"] == "fp32" else ""
            yield f"{about}: losses of the first {steps} steps differ by", target, reached


def scaling(result: dict[str, Any]) -> Iterator[Row]:
    for world, by_engine in result["traffic"].items():
        for engine, found in by_engine.items():
            reached = (
                f"{found['step']:,.0f}, of which for the loss {found['gather'] + found['scatter'] + found['sums']:,.0f}"
            )
            about = f"a step of a CLIP of {found['weights']:,.0f} weights, {world} processes, {engine}"
            yield f"{about}: bytes that each sends", "", reached


def table(results: dict[str, Any]) -> str:
    """Markdown of all results there are, in the order of ``NAMES``."""
    makers = {
        "pictures": pictures,
        "tokenizer": tokenizer,
        "loader": loader,
        "resume": resume,
        "memory": memory,
        "loss": loss,
        "rewrite": rewrite,
        "layer": layer,
        "sugarcrepe": sugarcrepe,
        "retrieval": retrieval,
        "evaluation": evaluation,
        "classifier": classifier,
        "generate": generate,
        "caption_loss": caption_loss,
        "tower": tower,
        "step": step,
        "scaling": scaling,
    }
    rows = [row for name in NAMES if name in results for row in makers[name](results[name])]
    lines = ["| | target | reached |", "|---|---:|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)} (default: all)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no benchmark {min(unknown)}: there are {', '.join(NAMES)}")
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    for name in arguments.names or NAMES:
        print(f"---- {name}", flush=True)
        command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(folder / f"{name}.json")]
        command += ["--page", str(HERE.parents[1] / "docs" / "scaling.md")] if name == "scaling" else []
        subprocess.run(command, check=True)
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{START}\n\n{table(results)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
