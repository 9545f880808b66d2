"""Which languages of a set are asked; apart from the task, so that `vlp eval --help` need not wait for torch."""

from __future__ import annotations

from pydantic import BaseModel, Field


class MultilingualOptions(BaseModel, frozen=True, extra="forbid"):
    """Of sets of retrieval in several languages."""

    languages: list[str] = Field([], description="codes as the set has them, such as de; by default all there are")
