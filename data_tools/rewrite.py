"""Rewrite captions with a language model (LaCLIP), as a layer beside the shards; no picture is read."""

from __future__ import annotations

import argparse
import sys
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("shards", nargs="+", metavar="SHARDS")
    add("--name", default="rewrites")
    add("--root")
    add("--url")
    add("--model")
    add("--prompt", default="laclip")
    add("--number", type=int, default=5)
    add("--seed", type=int, default=0)
    add("--caption", default="txt")
    add("--in-flight", type=int, default=64)


def run(arguments: argparse.Namespace) -> None:
    from data_tools._language_models import prompts
    from data_tools._language_models.engines import server
    from data_tools._language_models.shards import Job, Progress, write_texts
    from vlp.data.shards import find_shards

    prompt = prompts.load(arguments.prompt)
    engine = server.Engine(url=arguments.url, model=arguments.model, in_flight=arguments.in_flight)
    job = Job(
        engine,
        prompt,
        prompt.sampling,
        arguments.number,
        arguments.seed,
        arguments.caption,
        arguments.root,
        arguments.name,
    )
    start, last = time.monotonic(), [0.0]

    def told(progress: Progress) -> None:
        now = time.monotonic()
        if now - last[0] > 10:
            last[0] = now
            print(progress, f"{progress.written / (now - start):.1f}/s", file=sys.stderr, flush=True)

    print(write_texts(find_shards(arguments.shards, named="SHARDS"), job, told))
