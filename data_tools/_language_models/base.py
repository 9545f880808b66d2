"""What every engine takes and gives: requests in, texts out, in any order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, field_validator

Messages = tuple[tuple[str, str], ...]  # (role, text), role one of system, user, assistant


class Sampling(BaseModel, frozen=True, extra="forbid"):
    """How words are drawn. The text ends before the first of ``stop``, or after ``max_tokens``."""

    temperature: float = Field(default=0.9, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=77, ge=1)
    stop: tuple[str, ...] = ("\n",)

    @field_validator("stop")
    @classmethod
    def _ends_nothing_at_once(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty text stands at the start of every text, so all would be empty: leave it out")
        return stop


@dataclass(frozen=True)
class Request:
    """Text number ``number`` about ``caption``; a ``prompt`` is a text to go on with, or a conversation to answer."""

    caption: str
    number: int
    prompt: str | Messages
    seed: int


@dataclass(frozen=True)
class Completion:
    """What came back. ``problem`` says why there is no text, where asking again would not help: a server's refusal."""

    text: str
    prompt_tokens: int = 0
    tokens: int = 0
    problem: str = ""


class Engine(BaseModel, ABC, frozen=True, extra="forbid"):
    """Writes texts; its fields are its options, each a flag of the tools. Made anew in each process, then used often.

    One file in ``_language_models/engines/`` with a class of this name. Nothing heavy is imported or loaded before the
    first `complete`, and what was loaded stays out of pickles.
    """

    @property
    def at_once(self) -> int:
        """How many texts it works on together: how fast it is shows only in so many."""
        return 16

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a text depends on besides prompt, sampling and seed, for the record: never an address or a key."""

    @abstractmethod
    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Completion | None]]:
        """Each request with its text, as they come; reads as far ahead in ``requests`` as it can use, in this thread.

        None instead of a text says that the engine gave this request up for now: the next run asks it again.

        The same request gives the same text, as far as the model's arithmetic allows, whatever stands beside it.

        Raises:
            UserError: the model or the server cannot be used, or went away for good. What was yielded counts.
        """
