"""The recipe's section ``model``: which towers, from which weights, what is locked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool, model_validator

Lock = StrictBool | Annotated[int, Field(ge=1, strict=True)]


class PictureOptions(BaseModel, frozen=True, extra="forbid"):
    """How pictures become pixels, where it differs from what the weights or open_clip's defaults say."""

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    fill_color: Annotated[int, Field(ge=0, le=255)] | None = None


class ModelOptions(BaseModel, frozen=True, extra="forbid"):
    """Two towers and where they start.

    ``name`` is a model name of open_clip; ``config`` its model configuration (``embed_dim``,
    ``vision_cfg``, ``text_cfg``) inline or the path of a JSON file. ``text_cfg.hf_model_name`` may be a
    directory, a name on the hub or ``package:NAME``, an installed Python package that carries a model.
    ``init`` is a pretraining tag of open_clip, a weights file, a directory (run, checkpoint or export) or
    ``hf-hub:OWNER/MODEL``; a directory and the hub bring their own configuration where neither ``name`` nor
    ``config`` is given. ``init_logit_scale`` (the logarithm) and ``init_logit_bias`` win over what the
    weights bring. A lock is ``true``, or the number of last layer groups that stay trainable; the new
    projection on top of a timm or transformers tower is never locked.
    """

    name: str | None = None
    config: dict[str, Any] | str | None = None
    init: str | None = None
    init_logit_scale: float | None = None
    init_logit_bias: float | None = None
    lock_image: Lock = False
    lock_text: Lock = False
    picture: PictureOptions = PictureOptions()

    @model_validator(mode="after")
    def _one_architecture(self) -> ModelOptions:
        if self.name is not None and self.config is not None:
            raise ValueError("name and config exclude each other: give one of them")
        if self.name is None and self.config is None and self.init is None:
            raise ValueError("no architecture: give name (an open_clip model) or config, or init a directory")
        return self
