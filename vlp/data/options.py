"""What is trained on, and which text and crop of it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from vlp.data.cache import CacheOptions
from vlp.data.captions import CaptionSource, CaptionSources, HardCaptionSources
from vlp.data.sources import Source
from vlp.data.transforms import AugmentOptions


class DataOptions(BaseModel, frozen=True, extra="forbid"):
    """What is trained on, and which text and crop of it."""

    train: str | list[str | Source] = Field(
        description="tar shards: a tar, a directory, a glob, a brace pattern, a URL, `pipe:COMMAND`, or several; "
        "or sources `{shards, weight, replacement, index, layers}`"
    )
    captions: CaptionSources = Field(
        default=[CaptionSource(source="txt")], min_length=1, description="texts of which one is drawn for each sample"
    )
    hard_captions: HardCaptionSources = Field(
        default=[],
        description="captions that are nearly right but false of the picture, for the objective hard_negatives: "
        "`[{source: layer.negatives.negatives}]` of `vlp data negatives`; of several sources drawn by their weights",
    )
    neighbours: str | None = Field(
        default=None,
        pattern=r"^layer\.[^./]+(\..+)?$",
        description="`layer.NAME` of `vlp data neighbours`: beside each sample of the batch stands one of its similar "
        "pictures with a caption of its own, so that the losses compare twice `train.global_batch_size` rows",
    )
    filter: str | None = Field(
        default=None, description="samples to keep, by layers: `aesthetic > 5 and clip_score > 0.28`"
    )
    decode: Literal["exact", "fast"] = Field(
        default="exact", description="exact: as Pillow's bicubic; fast: JPEGs are decoded near the size of the crop"
    )
    augment: AugmentOptions = AugmentOptions()
    workers: int = Field(default=2, ge=0, description="processes of each rank that decode pictures; 0: none")
    shuffle_window: int = Field(default=10_000, ge=1, description="samples that are shuffled together, of all streams")
    shuffle_streams: int = Field(
        default=16, ge=1, description="places of the data set that a batch mixes, each with its share of the window"
    )
    max_bad_fraction: float = Field(
        default=0.01, ge=0, le=1, description="share of unusable samples beyond which the run ends"
    )
    cache: CacheOptions = CacheOptions()
    read_ahead_mb: int = Field(default=256, ge=1, description="megabytes that a worker reads ahead of remote shards")

    @property
    def sources(self) -> list[Source]:
        """`train` as sources; plain names make one."""
        entries = [self.train] if isinstance(self.train, str) else self.train
        plain = [entry for entry in entries if isinstance(entry, str)]
        given = [entry for entry in entries if isinstance(entry, Source)]
        return [*([Source(shards=plain)] if plain or not given else []), *given]
