"""From an RGB picture to the model's uint8 tensor: as open_clip does for evaluation, augmented for training.

Normalisation by mean and std happens later, on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field, model_validator
from torchvision.transforms.v2 import functional as F

from vlp.data.samples import WHITE

Jitter = tuple[float, float, float, float]


@dataclass(frozen=True)
class PictureFormat:
    """What a model expects of its pictures (open_clip's ``preprocess_cfg``); ``size`` is (height, width)."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0

    @property
    def resampling(self) -> Image.Resampling:
        return Image.Resampling.BILINEAR if self.interpolation == "bilinear" else Image.Resampling.BICUBIC


class AugmentOptions(BaseModel, frozen=True, extra="forbid"):
    """How training pictures vary. The crop is always drawn; the rest is off by default."""

    crop_scale: tuple[float, float] = Field((0.9, 1.0), description="range of the crop's share of the area")
    crop_ratio: tuple[float, float] = Field((0.75, 1.333), description="range of the crop's width / height")
    flip: float = Field(default=0.0, ge=0, le=1, description="probability of mirroring left and right")
    colour_jitter: Jitter | None = Field(None, description="strengths: brightness, contrast, saturation, hue")
    grey: float = Field(default=0.0, ge=0, le=1, description="probability of taking the colours away")
    ground: Literal["white", "random"] = Field(
        "white", description="what transparent pictures are laid on: white, or a colour drawn each time"
    )
    rotate: float = Field(default=0.0, ge=0, le=180, description="largest angle in degrees, either way")

    @model_validator(mode="after")
    def _ranges(self) -> AugmentOptions:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale {self.crop_scale} must be a range within (0, 1], such as [0.9, 1.0]")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {self.crop_ratio} must be a rising range above 0, such as [0.75, 1.333]")
        if self.colour_jitter and (min(self.colour_jitter) < 0 or self.colour_jitter[3] > 0.5):
            raise ValueError(f"colour_jitter {self.colour_jitter} must be four numbers >= 0, the hue at most 0.5")
        return self


def to_tensor(image: Image.Image) -> torch.Tensor:
    """uint8 CHW of an RGB picture."""
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())


def eval_transform(picture_format: PictureFormat) -> Callable[[Image.Image], torch.Tensor]:
    """RGB picture -> uint8 CHW, to the pixel what open_clip's evaluation transform gives before ToTensor."""
    from open_clip.transform import image_transform  # slow to import, and training data does not need it

    steps = image_transform(
        picture_format.size,
        is_train=False,
        mean=picture_format.mean,
        std=picture_format.std,
        resize_mode=picture_format.resize_mode,
        interpolation=picture_format.interpolation,
        fill_color=picture_format.fill_color,
    ).transforms[:-2]  # without ToTensor and Normalize

    def transform(image: Image.Image) -> torch.Tensor:
        for step in steps:
            image = step(image)
        return to_tensor(image)

    return transform


def draw_ground(options: AugmentOptions, generator: np.random.Generator) -> tuple[int, int, int]:
    """The colour on which a transparent picture is laid."""
    if options.ground == "white":
        return WHITE
    red, green, blue = (int(256 * value) for value in generator.random(3))
    return red, green, blue


def train_transform(
    picture_format: PictureFormat, options: AugmentOptions
) -> Callable[[Image.Image, np.random.Generator], torch.Tensor]:
    """(RGB picture, draws) -> uint8 CHW: rotation, random resized crop, flip, colour, grey; a pure function.

    The crop is that of torchvision's RandomResizedCrop, whatever ``resize_mode`` says, as in open_clip.
    """
    return partial(_augmented, picture_format, options)


def _augmented(
    picture_format: PictureFormat,
    options: AugmentOptions,
    image: Image.Image,
    generator: np.random.Generator,
) -> torch.Tensor:
    if options.rotate:
        angle = options.rotate * (2 * generator.random() - 1)
        image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=WHITE)
    box = crop_box(image.width, image.height, options, generator)
    image = image.crop(box).resize(picture_format.size[::-1], picture_format.resampling)
    if options.flip and generator.random() < options.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if options.colour_jitter:
        image = jitter(image, options.colour_jitter, generator)
    if options.grey and generator.random() < options.grey:
        image = image.convert("L").convert("RGB")
    return to_tensor(image)


def crop_box(
    width: int, height: int, options: AugmentOptions, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random crop; after ten draws that do not fit, a central one."""
    low, high = math.log(options.crop_ratio[0]), math.log(options.crop_ratio[1])
    for _ in range(10):
        scale, ratio, across, down = generator.random(4).tolist()
        area = width * height * (options.crop_scale[0] + scale * (options.crop_scale[1] - options.crop_scale[0]))
        aspect = math.exp(low + ratio * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * options.crop_ratio[1])))
    h = min(height, max(1, round(width / options.crop_ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def jitter(image: Image.Image, strengths: Jitter, generator: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation, hue: each by a factor drawn from its strength, in a drawn order."""
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    draws = generator.random((4, 2))
    for which in np.argsort(draws[:, 0], kind="stable"):
        strength, draw = strengths[which], float(draws[which, 1])
        if strength:
            neutral = 0.0 if which == 3 else 1.0
            low = neutral - strength if which == 3 else max(0.0, 1 - strength)
            image = changes[which](image, low + draw * (neutral + strength - low))
    return image
