"""What writing the missing texts will cost, measured on the first of them, which are kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from data_tools._language_models.base import Completion, Request
from data_tools._language_models.shards import Job, Progress, write_texts
from data_tools._language_models.survey import Survey

LEAST_TEXTS = 32


@dataclass(frozen=True)
class Measured:
    """Texts written to see how fast they come: all of them, and of those after the first their number and seconds."""

    texts: list[tuple[Request, Completion]]
    timed: Progress
    seconds: float


def measure(path: str, job: Job, others: Sequence[str] = ()) -> Measured:
    """Write some missing texts: one so that the model is loaded, then as many as show the engine's speed.

    Those of ``path`` come first; what lies in the files of ``others`` is not paid for again.
    """
    paths = [path, *(other for other in others if other != path)]
    texts: list[tuple[Request, Completion]] = []

    def told(progress: Progress, request: Request, completion: Completion) -> None:
        texts.append((request, completion))

    write_texts(paths, job, told, at_most=1)
    start = time.monotonic()
    timed = write_texts(paths, job, told, at_most=max(LEAST_TEXTS, 2 * job.engine.at_once))
    return Measured(texts, timed, time.monotonic() - start)


def lines(survey: Survey, job: Job, measured: Measured | None) -> list[str]:
    """The estimate for a terminal."""
    found = [
        f"captions  {survey.captions:,} in {survey.samples:,} samples, {survey.distinct:,} of them different",
        f"texts     {survey.distinct * job.number:,}, of which {survey.missing:,} are not there yet",
    ]
    if measured is None:
        return [*found, "nothing is left to be written"]
    timed, left = measured.timed, survey.missing - len(measured.texts)
    if not timed.written:
        return [
            *found,
            "the engine left all unanswered: nothing is measured" if left else "nothing is left to be measured",
        ]
    rate = timed.written / measured.seconds
    read, written = (count / timed.written for count in (timed.prompt_tokens, timed.tokens))
    return [
        *found,
        f"tokens    {read * left:,.0f} in ({read:.0f} a text) and {written * left:,.0f} out ({written:.0f} a text)",
        f"time      {timedelta(seconds=round(left / rate))} for the {left:,} texts that are left, "
        f"at {rate:,.1f} texts/s, {timed.tokens / measured.seconds:,.0f} tokens/s",
        f"          (measured on {timed.written:,} texts; they are kept)",
    ]
