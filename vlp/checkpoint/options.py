"""When a run is saved, and where."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator


class CheckpointOptions(BaseModel, frozen=True, extra="forbid"):
    """When to save, how many checkpoints stay, and where else they lie."""

    every: int = Field(1000, gt=0, description="steps between two checkpoints; the last step is always saved")
    keep: int = Field(3, gt=0, description="newest checkpoints that stay, here and in copy_to")
    copy_to: str | None = Field(
        None,
        min_length=1,
        description="copy every checkpoint into NAME/checkpoints below this place, a directory or an address that "
        "fsspec can write to (s3://bucket/folder), and go on from there where this machine has none",
    )

    @field_validator("copy_to")
    @classmethod
    def _can_be_written_to(cls, place: str | None) -> str | None:
        if place is not None and place.startswith(("http://", "https://", "pipe:")):
            raise ValueError(f"{place} cannot be written to: name a directory or a store such as s3://bucket/folder")
        return place
