"""From an RGB picture to the model's uint8 tensor: as open_clip does for evaluation, augmented for training.

Normalisation by mean and std happens later, on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from pydantic import BaseModel, Field, model_validator
from torch.nn.functional import interpolate
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from vlp.data.pictures import Picture
from vlp.data.samples import WHITE

Box = tuple[int, int, int, int]  # left, top, right, bottom
Colour = tuple[int, int, int]
Decode = Literal["exact", "fast"]
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
    randaugment: tuple[int, int] | None = Field(
        None, description="RandAugment: operations a view, and their magnitude from 0 to 30, such as [2, 9]"
    )
    blur: tuple[float, float, float] | None = Field(
        None, description="Gaussian blur: probability, then the range of sigma in pixels of the view, as [0.5, 0.1, 2]"
    )

    @model_validator(mode="after")
    def _ranges(self) -> AugmentOptions:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale {self.crop_scale} must be a range within (0, 1], such as [0.9, 1.0]")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {self.crop_ratio} must be a rising range above 0, such as [0.75, 1.333]")
        if self.colour_jitter and (min(self.colour_jitter) < 0 or self.colour_jitter[3] > 0.5):
            raise ValueError(f"colour_jitter {self.colour_jitter} must be four numbers >= 0, the hue at most 0.5")
        if self.randaugment and not (self.randaugment[0] >= 1 and 0 <= self.randaugment[1] <= 30):
            raise ValueError(f"randaugment {self.randaugment} must be operations >= 1 and a magnitude from 0 to 30")
        if self.blur and not (0 < self.blur[0] <= 1 and 0 < self.blur[1] <= self.blur[2]):
            raise ValueError(
                f"blur {self.blur} must be a probability and a rising range above 0, such as [0.5, 0.1, 2]"
            )
        return self

    @property
    def changes_colours(self) -> bool:
        return bool(self.randaugment or self.colour_jitter or self.grey or self.blur)


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


def draw_ground(options: AugmentOptions, generator: np.random.Generator) -> Colour:
    """The colour on which a transparent picture is laid."""
    if options.ground == "white":
        return WHITE
    red, green, blue = (int(256 * value) for value in generator.random(3))
    return red, green, blue


def train_transform(
    picture_format: PictureFormat, options: AugmentOptions, decode: Decode = "exact"
) -> Callable[..., torch.Tensor]:
    """``(data: bytes, generator, num_views=1, out=None)`` -> uint8 (num_views, C, H, W); a pure function of the draws.

    ``data`` is decoded once; each view is a crop of its own, changed by draws of its own. View 0 is the same whatever
    ``num_views``. ``out`` is filled and returned if given, with views of its own height and width: the same
    crops in another size. It is filled quickest where its memory is channels last, as that of a new tensor is. The crop
    is that of torchvision's RandomResizedCrop, whatever ``resize_mode`` says, as in open_clip.

    The draws, each only if its option is on: the ground once; then for each view rotation, crop, flip, RandAugment,
    colour, grey, blur.

    ``decode="exact"`` gives what Pillow's crop and resize give, up to rounding. ``"fast"`` decodes a JPEG to the
    smallest of 1/1, 1/2, 1/4, 1/8 of its size at which the crop is no smaller than the view (libjpeg-turbo's other
    scales cost more than they save), and rounds the edges of the crop to the pixels of that size.

    Raises:
        BadSample: the picture cannot be used.
    """
    return partial(_views, picture_format, options, decode)


def _views(
    picture_format: PictureFormat,
    options: AugmentOptions,
    decode: Decode,
    data: bytes,
    generator: np.random.Generator,
    num_views: int = 1,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    if out is None:
        shape = (num_views, 3, *picture_format.size)
        out = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    views, channels, height, width = out.shape
    assert (views, channels, out.dtype) == (num_views, 3, torch.uint8), f"out is {out.dtype} {tuple(out.shape)}"
    picture_format = replace(picture_format, size=(height, width))
    ground = draw_ground(options, generator)
    picture = Picture(data, ground)
    for view in out:
        view.copy_(_view(picture_format, options, decode, picture, ground, generator))
    return out


def _view(
    picture_format: PictureFormat,
    options: AugmentOptions,
    decode: Decode,
    picture: Picture,
    ground: Colour,
    generator: np.random.Generator,
) -> torch.Tensor:
    """uint8 CHW."""
    angle = options.rotate * (2 * generator.random() - 1) if options.rotate else 0.0
    box = crop_box(picture.width, picture.height, options, generator)
    pixels, reduction = picture.pixels(largest_reduction(box, picture_format.size) if decode == "fast" else 1)
    if angle:
        turned = Image.fromarray(pixels).rotate(angle, Image.Resampling.BICUBIC, fillcolor=ground)
        pixels = np.array(turned)
    left, top, right, bottom = reduced_box(box, reduction)
    view = _resized(pixels[top:bottom, left:right], picture_format)
    if options.flip and generator.random() < options.flip:
        view = view.flip(-1)
    if options.changes_colours:
        image = Image.fromarray(view.permute(1, 2, 0).numpy())
        view = to_tensor(_recoloured(image, options, ground, generator))
    return view


def largest_reduction(box: Box, size: tuple[int, int]) -> int:
    """1, 2, 4 or 8: by how much a picture may shrink so that the crop ``box`` still covers ``size`` (height, width)."""
    width, height = box[2] - box[0], box[3] - box[1]
    return next((k for k in (8, 4, 2) if height >= k * size[0] and width >= k * size[1]), 1)


def reduced_box(box: Box, reduction: int) -> Box:
    """``box`` in the pixels of the reduced picture: its edges go to the nearest pixel, halves upwards.

    So a side of at least ``k * reduction`` pixels keeps at least ``k``.
    """
    left, top, right, bottom = ((edge + reduction // 2) // reduction for edge in box)
    return left, top, right, bottom


def _resized(pixels: np.ndarray, picture_format: PictureFormat) -> torch.Tensor:
    """uint8 CHW, channels last in memory: torch's kernel for that layout is many times as fast as any other."""
    crop = torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(0).permute(0, 3, 1, 2)
    return interpolate(crop, picture_format.size, mode=picture_format.interpolation, antialias=True)[0]


def _recoloured(
    image: Image.Image, options: AugmentOptions, ground: Colour, generator: np.random.Generator
) -> Image.Image:
    """On Pillow's pictures, which are quicker here than tensors."""
    if options.randaugment:
        image = randaugment(image, options.randaugment, ground, int(generator.integers(2**63)))
    if options.colour_jitter:
        image = jitter(image, options.colour_jitter, generator)
    if options.grey and generator.random() < options.grey:
        image = image.convert("L").convert("RGB")
    if options.blur and generator.random() < options.blur[0]:
        low, high = options.blur[1:]
        image = image.filter(ImageFilter.GaussianBlur(low + generator.random() * (high - low)))
    return image


def randaugment(image: Image.Image, strength: tuple[int, int], ground: Colour, seed: int) -> Image.Image:
    """torchvision's RandAugment with ``strength`` (operations, magnitude); torch's own generator stays as it was."""
    change = v2.RandAugment(*strength, interpolation=v2.InterpolationMode.BILINEAR, fill=list(ground))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return change(image)


def crop_box(width: int, height: int, options: AugmentOptions, generator: np.random.Generator) -> Box:
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
