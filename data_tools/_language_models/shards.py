"""Texts for the captions of many shards: one stream of requests, a file of completions a shard."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools._language_models.base import Completion, Engine, Request, Sampling
from data_tools._language_models.completions import Completions
from data_tools._language_models.prompts import Prompt
from vlp.data.captions import SampleTexts
from vlp.data.index import open_shard
from vlp.data.layer_files import layer_path
from vlp.data.samples import BadSample
from vlp.data.shards import Shard, stem
from vlp.types import Skipped, UserError

KNOWN_TEXTS = 2_000_000  # kept in memory for captions that come again in another shard


@dataclass(frozen=True)
class Job:
    """What is asked about which captions, and where the answers are kept."""

    engine: Engine
    prompt: Prompt
    sampling: Sampling
    number: int
    seed: int
    caption: str
    root: str | None
    name: str

    def origin(self) -> dict[str, Any]:
        """All that the texts depend on."""
        return {
            **self.engine.identity(),
            "prompt": self.prompt.digest,
            "sampling": self.sampling.model_dump(mode="json"),
            "seed": self.seed,
        }

    def completions(self, shard_path: str) -> Path:
        """The file of the texts for one shard.

        Raises:
            UserError: layers on a store that cannot append.
        """
        layer = layer_path(shard_path, self.name, self.root)
        if "://" in layer:
            raise UserError(f"cannot keep what the model writes at {layer}: name a local folder with --root")
        return Path(layer).parent / ".completions" / f"{stem(shard_path)}.jsonl"

    def requests(self, captions: Sequence[str]) -> Iterator[Request]:
        for caption in dict.fromkeys(captions):
            for number in range(self.number):
                yield self.prompt.request(caption, number, self.seed)


def captions_of_shard(path: str, source: str) -> tuple[Shard, list[str], list[Skipped]]:
    """The shard, the caption of each of its samples ("" where it has none), and what had to be left out."""
    shard, defects = open_shard(path)
    captions = []
    for row in range(len(shard)):
        try:
            texts = SampleTexts(shard.read(row, {source.partition(".")[0]})).of(source)
        except BadSample as bad:
            texts = []
            defects = [*defects, Skipped(bad.kind, shard.where(row))]
        captions.append(next(iter(texts), ""))
    return shard, captions, defects


@dataclass
class Progress:
    """What has been done so far: texts that were there already, texts written now and their tokens."""

    found: int = 0
    written: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    refused: int = 0

    def add(self, completion: Completion) -> None:
        self.written += 1
        self.prompt_tokens += completion.prompt_tokens
        self.tokens += completion.tokens
        self.refused += bool(completion.problem)


@dataclass
class _Known:
    """Texts of shards that were done before, the last ones used: a caption that comes again is not paid again."""

    texts: OrderedDict[tuple[str, int], Completion] = field(default_factory=OrderedDict)

    def put(self, key: tuple[str, int], completion: Completion) -> None:
        self.texts[key] = completion
        if len(self.texts) > KNOWN_TEXTS:
            self.texts.popitem(last=False)


def write_texts(paths: Sequence[str], job: Job, told: Callable[[Progress], None] = lambda progress: None) -> Progress:
    """Have the engine write whatever is missing for the captions of ``paths``; ``told`` hears of each text.

    Requests of the next shard begin while the last ones of a shard are on their way.
    """
    progress, known = Progress(), _Known()
    with ExitStack() as opened:
        owners: dict[Request, list[Completions]] = {}

        def missing() -> Iterator[Request]:
            for path in paths:
                _, captions, _ = captions_of_shard(path, job.caption)
                completions = opened.enter_context(Completions(job.completions(path), job.origin()))
                for request in job.requests([caption for caption in captions if caption]):
                    key = request.caption, request.number
                    there = completions.get(*key)
                    if there is None and key in known.texts:
                        completions.add(request, known.texts[key])
                        there = known.texts[key]
                    if there is not None:
                        known.put(key, there)
                        progress.found += 1
                    elif request in owners:
                        owners[request].append(completions)
                    else:
                        owners[request] = [completions]
                        yield request

        for request, completion in job.engine.complete(missing(), job.sampling):
            for completions in owners.pop(request):
                completions.add(request, completion)
            known.put((request.caption, request.number), completion)
            progress.add(completion)
            told(progress)
    return progress
