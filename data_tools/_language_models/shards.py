"""Texts for the captions of many shards: one stream of requests, a file of completions a shard."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from data_tools._language_models.base import Completion, Engine, Request, Sampling
from data_tools._language_models.completions import Completions, read
from data_tools._language_models.prompts import Prompt
from vlp.data.captions import SampleTexts
from vlp.data.index import open_shard
from vlp.data.layer_files import layer_path
from vlp.data.samples import BadSample
from vlp.data.shards import Shard, stem
from vlp.types import Skipped, UserError

KNOWN_TEXTS = 2_000_000  # kept in memory for captions that come again in another shard
NO_CAPTION = "no caption"


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
    every_caption: bool = False
    """Whether all of a list of captions count, or its first."""

    def origin(self) -> dict[str, Any]:
        """All that the texts depend on. What the engine says of itself is asked once, and travels with the job."""
        return dict(self._origin)

    @cached_property
    def _origin(self) -> dict[str, Any]:
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

    def request(self, caption: str, number: int) -> Request:
        return self.prompt.request(caption, number, self.seed)


def texts_of_shard(path: str, source: str, every: bool) -> tuple[Shard, list[list[str]], list[Skipped]]:
    """The shard, the captions of each of its samples, and what had to be left out.

    Of a list of captions the first counts, or, with ``every``, all that are not empty.
    """
    shard, defects = open_shard(path)
    defects, captions = list(defects), []
    for row in range(len(shard)):
        kind = NO_CAPTION
        try:
            texts = SampleTexts(shard.read(row, {source.partition(".")[0]})).of(source)
        except BadSample as bad:
            texts, kind = [], bad.kind
        captions.append([text for text in dict.fromkeys(texts if every else texts[:1]) if text])
        if not captions[-1]:
            defects.append(Skipped(kind, shard.where(row)))
    return shard, captions, defects


def captions_of_shard(path: str, source: str) -> tuple[Shard, list[str], list[Skipped]]:
    """As `texts_of_shard`, one caption a sample; "" where it has none."""
    shard, captions, defects = texts_of_shard(path, source, every=False)
    return shard, ["".join(own) for own in captions], defects


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

    def __iadd__(self, other: Progress) -> Progress:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


Told = Callable[[Progress, Request, Completion], None]


def write_texts(paths: Sequence[str], job: Job, told: Told = lambda *_: None, at_most: int | None = None) -> Progress:
    """Have the engine write what is missing for the captions of ``paths``; ``told`` hears of each text.

    Requests of the next shard begin while the last ones of a shard are on their way. A request that the engine gives up
    stays missing. The engine is not called where nothing is missing, or where the text lies in the file of
    any other of ``paths``.

    Raises:
        UserError: as `Completions` and the engine do; what was written by then is kept.
    """
    writing = _Writing(job)
    requests = islice(writing.missing(paths), at_most)
    try:
        for first in requests:
            for request, completion in job.engine.complete(chain([first], requests), job.sampling):
                if completion is None:
                    writing.give_up(request)
                else:
                    told(writing.progress, request, writing.keep(request, completion))
    finally:
        writing.close()
    return writing.progress


@dataclass(eq=False)
class _Open:
    """A shard at work: its file closes when all its texts have been asked for and have come."""

    completions: Completions
    waiting: int = 0
    all_asked: bool = False


@dataclass
class _Writing:
    job: Job
    progress: Progress = field(default_factory=Progress)
    _owners: dict[tuple[str, int], list[_Open]] = field(default_factory=dict)  # of requests on their way
    _known: OrderedDict[tuple[str, int], Completion] = field(default_factory=OrderedDict)
    _open: set[_Open] = field(default_factory=set)

    def missing(self, paths: Sequence[str]) -> Iterator[Request]:
        if len(paths) > 1:
            self._learn(paths)
        for path in paths:
            shard = _Open(Completions(self.job.completions(path), self.job.origin()))
            self._open.add(shard)
            _, samples, _ = texts_of_shard(path, self.job.caption, self.job.every_caption)
            for caption in dict.fromkeys(caption for captions in samples for caption in captions):
                for number in range(self.job.number):
                    if self._is_asked(shard, caption, number):
                        yield self.job.request(caption, number)
            shard.all_asked = True
            self._close_if_done(shard)

    def _learn(self, paths: Sequence[str]) -> None:
        """A text that a later shard has is there for an earlier one too."""
        for path in paths:
            texts, _ = read(self.job.completions(path), self.job.origin())
            for key, completion in texts.items():
                self._remember(key, completion)

    def _is_asked(self, shard: _Open, caption: str, number: int) -> bool:
        key = caption, number
        there = shard.completions.get(*key)
        if there is None and key in self._known:
            there = self._known[key]
            shard.completions.add(self.job.request(*key), there)
        if there is not None:
            self._remember(key, there)
            self.progress.found += 1
            return False
        shard.waiting += 1
        owners = self._owners.setdefault(key, [])
        owners.append(shard)
        return len(owners) == 1

    def keep(self, request: Request, completion: Completion) -> Completion:
        """Write an answer down for every shard that waits for it."""
        completion = replace(completion, text=_writable(completion.text), problem=_writable(completion.problem))
        key = request.caption, request.number
        for shard in self._owners.pop(key):
            shard.completions.add(request, completion)
            self._waits_no_more(shard)
        self._remember(key, completion)
        self.progress.add(completion)
        return completion

    def give_up(self, request: Request) -> None:
        for shard in self._owners.pop((request.caption, request.number)):
            self._waits_no_more(shard)

    def _remember(self, key: tuple[str, int], completion: Completion) -> None:
        """A caption that comes again in another shard is not paid again, as long as it is not too long ago."""
        self._known[key] = completion
        if len(self._known) > KNOWN_TEXTS:
            self._known.popitem(last=False)

    def _waits_no_more(self, shard: _Open) -> None:
        shard.waiting -= 1
        self._close_if_done(shard)

    def _close_if_done(self, shard: _Open) -> None:
        if shard.all_asked and not shard.waiting:
            self._open.discard(shard)
            shard.completions.close()

    def close(self) -> None:
        while self._open:
            self._open.pop().completions.close()


def _writable(text: str) -> str:
    """``text`` without halves of characters, which servers send and no file takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@lru_cache(maxsize=1)
def _here(engine: Engine) -> Engine:
    """The first engine of its kind in this process: with each task comes a copy that has loaded nothing."""
    return engine


def write_texts_of_shard(path: str, job: Job) -> Progress:
    """`write_texts` as a task of a cluster, where a process does one shard after the other."""
    origin = job.origin()
    mine = replace(job, engine=_here(job.engine))
    vars(mine)["_origin"] = origin
    return write_texts([path], mine)
