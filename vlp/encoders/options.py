"""The recipe's section ``model``: which towers, from which weights, what is locked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool, model_validator

from vlp.encoders.captioner import CaptionerOptions
from vlp.encoders.fusion import FusionOptions
from vlp.encoders.lora import LoraOptions

Positive = Annotated[float, Field(gt=0)]
Lock = StrictBool | Annotated[int, Field(ge=1, strict=True)]


class PictureOptions(BaseModel, frozen=True, extra="forbid"):
    """How pictures become pixels, where it differs from what the weights or open_clip's defaults say."""

    mean: tuple[float, float, float] | None = Field(None, description="of the colours in 0..1, subtracted")
    std: tuple[Positive, Positive, Positive] | None = Field(None, description="of the colours in 0..1, divided by")
    interpolation: Literal["bicubic", "bilinear"] | None = Field(None, description="how pictures are resized")
    resize_mode: Literal["shortest", "longest", "squash"] | None = Field(
        None, description="in evaluation: crop what exceeds, pad what lacks, or distort"
    )
    fill_color: Annotated[int, Field(ge=0, le=255)] | None = Field(None, description="of the padding of `longest`")


class ModelOptions(BaseModel, frozen=True, extra="forbid"):
    """Two towers and where they start.

    A directory or the hub as ``init`` brings its own configuration where neither ``name`` nor ``config`` is given.
    ``text_cfg.hf_model_name`` of a configuration may be a directory, a name on the hub or ``package:NAME``, an
    installed Python package that carries a model. The new projection on top of a timm or transformers tower is never
    locked.
    """

    name: str | None = Field(None, description="a model name of open_clip, such as ViT-B-32")
    config: dict[str, Any] | str | None = Field(
        None,
        description="a model configuration of open_clip (`embed_dim`, `vision_cfg`, `text_cfg`), inline or a JSON file",
    )
    init: str | None = Field(
        None,
        description="weights: a pretraining tag of open_clip, a file, a directory (run, checkpoint or export) or "
        "`hf-hub:OWNER/MODEL`; from scratch without it",
    )
    init_image: str | None = Field(
        None,
        description="the image tower of this MODEL with its projection, of the same `vision_cfg` and `embed_dim`; the "
        "text tower begins as its configuration says",
    )
    init_logit_scale: float | None = Field(
        None, description="logarithm of the multiplier at the start; wins over what weights and objectives bring"
    )
    init_logit_bias: float | None = Field(
        None, description="added to logits at the start; wins over what weights and objectives bring"
    )
    lock_image: Lock = Field(False, description="true, or the number of last layer groups that stay trainable")
    lock_text: Lock = Field(False, description="true, or the number of last layer groups that stay trainable")
    lora: LoraOptions | None = Field(
        None, description="learn narrow matrices beside the weights of `init`, which stay: `{rank: 8}`"
    )
    picture: PictureOptions = PictureOptions()
    captioner: CaptionerOptions | None = Field(
        None, description="a head that tells captions, for a model that is no CoCa and brings none: `{layers: 2}`"
    )
    fusion: FusionOptions | None = Field(
        None, description="a tower that reads texts with pictures, for the objectives that need it: `{layers: 2}`"
    )

    @model_validator(mode="after")
    def _one_architecture(self) -> ModelOptions:
        if self.name is not None and self.config is not None:
            raise ValueError("name and config exclude each other: give one of them")
        if self.name is None and self.config is None and self.init is None:
            raise ValueError("no architecture: give name (an open_clip model) or config, or init a directory")
        return self

    @model_validator(mode="after")
    def _towers_begin_once(self) -> ModelOptions:
        if self.init_image is not None and self.init is not None:
            raise ValueError("init and init_image exclude each other: init brings both towers")
        return self

    @model_validator(mode="after")
    def _lora_has_something_to_stand_beside(self) -> ModelOptions:
        if self.lora is not None and self.init is None:
            raise ValueError("lora adapts weights that are there: give init, or remove it")
        if self.lora is not None and (self.lock_image is not False or self.lock_text is not False):
            raise ValueError(
                "lora freezes both towers itself: remove lock_image and lock_text; lora.towers says which learn"
            )
        return self
