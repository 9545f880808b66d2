"""How a set with classes is asked; apart from the task, so that `vlp eval --help` need not wait for torch."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ClassificationOptions(BaseModel, frozen=True, extra="forbid"):
    """How classes are put into words, and what is asked of the image tower besides."""

    templates: str | None = Field(
        None,
        description="prompts with {c} where the class name goes: `set` (the set's own), `openai` (80, for ImageNet), "
        "`openai-simple` (7), or a file, one a line or JSON as CLIP_benchmark's; by default the set's own, or `openai` "
        "where it has none",
    )
    classnames: str | None = Field(
        None, description="file of class names in the order of the classes, one a line or JSON as CLIP_benchmark's"
    )
    probe: bool = Field(False, description="also fit a linear probe on the features of the set's train/")
    knn: int | None = Field(
        None, ge=1, description="also ask this many nearest pictures of the set's train/ for their class, such as 20"
    )
    cache: bool = Field(True, description="keep class embeddings on disk, for the next time with the same text tower")
