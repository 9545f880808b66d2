"""transformers: a directory that `AutoModel` and `AutoProcessor` load, as CLIPModel or SiglipModel, where it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import image_transform
from torch import Tensor
from torchvision.transforms.functional import crop
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedModel,
    SiglipImageProcessor,
    SiglipModel,
)

from vlp.data.transforms import to_tensor
from vlp.encoders import inputs
from vlp.encoders.transformers_names import convert, rows
from vlp.encoders.transformers_pictures import processor_arguments
from vlp.encoders.two_tower import TwoTower
from vlp.export import bpe_files
from vlp.export.formats.base import TEXTS, TOLERANCE, DiffersError, largest, pictures, unit_features
from vlp.export.transformers_shapes import Shape, shape_of
from vlp.types import UserError

LIBRARY = "transformers"
LEVELS = 2.0  # of 255: by so much torchvision's resizing, transformers' default, may differ from Pillow's


def check(model: TwoTower) -> None:
    shape = shape_of(model.clip, model.tokenizer)
    processor_arguments(model.picture_format)
    cleaning = _cleaning(model)
    wanted = ("lower",) if isinstance(model.tokenizer, SimpleTokenizer) else ("none", "whitespace")
    if cleaning not in wanted:
        raise UserError(f"--to transformers: texts are cleaned by '{cleaning}', which its tokenizers do not do")
    if shape.family == "siglip" and isinstance(model.tokenizer, SimpleTokenizer):
        raise UserError(
            "--to transformers: the text tower sees the ids that texts are filled up with, 0, but CLIPTokenizer fills "
            "up with another id: make the tower causal, or train with a tokenizer of transformers"
        )


def _cleaning(model: TwoTower) -> str:
    return str(inputs.of_texts(model)["cleaning"])


def left_out(model: TwoTower) -> list[str]:
    found = []
    if shape_of(model.clip, model.tokenizer).family == "clip" and model.clip.logit_bias is not None:
        found.append(
            f"CLIPModel has no bias of the logits: add {model.clip.logit_bias.item():.6g} to `logits_per_image` where "
            "probabilities of a sigmoid are wanted; rankings and features are the same without."
        )
    if model.captioner is not None:
        found.append("The captioning head is left out: transformers has no place for it.")
    if _cleaning(model) != "none":
        found.append(
            "Texts with HTML entities or a broken encoding get other ids: the model's own tokenizer repairs them first."
        )
    return found


def write(model: TwoTower, directory: Path, final: Path) -> None:
    shape = shape_of(model.clip, model.tokenizer)
    kind: type[PreTrainedModel] = CLIPModel if shape.family == "clip" else SiglipModel
    with torch.device("meta"):
        theirs = kind(shape.config)
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    values = {name: value.cpu() for name, value in _weights(model, shape).items()}
    text = "text." if hasattr(model.clip, "text") else ""
    table = rows(shape.family, shape.image_layers, shape.text_layers, text)
    converted = convert(values, table, shapes, "theirs")
    theirs.load_state_dict(converted, assign=True)
    theirs.save_pretrained(directory, state_dict=converted)
    _tokenizer(model, shape).save_pretrained(directory)
    arguments = processor_arguments(model.picture_format)
    as_siglip = shape.family == "siglip" and not arguments["do_center_crop"]
    if as_siglip:
        arguments = {name: value for name, value in arguments.items() if name not in ("do_center_crop", "crop_size")}
    (SiglipImageProcessor if as_siglip else CLIPImageProcessor)(**arguments).save_pretrained(directory)


def _weights(model: TwoTower, shape: Shape) -> dict[str, Tensor]:
    values = dict(model.clip.state_dict())
    if shape.family == "clip":
        values.pop("logit_bias", None)  # told by left_out
    else:
        values.setdefault("logit_bias", torch.zeros(1))
    return values


def _tokenizer(model: TwoTower, shape: Shape) -> Any:
    tokenizer: Any = model.tokenizer
    found = bpe_files.tokenizer(tokenizer) if isinstance(tokenizer, SimpleTokenizer) else tokenizer.tokenizer
    found.model_max_length = tokenizer.context_length
    if shape.family == "siglip":
        found.model_input_names = ["input_ids"]  # the tower saw its padding when it was trained: no mask
    return found


def compare(model: TwoTower, directory: Path) -> dict[str, float]:
    """What ``AutoProcessor`` and ``AutoModel`` make of ``directory`` alone.

    ``max_abs_difference``: of features of length 1 and of the logit scale, of the model's own pixels and their ids;
    ``max_pixel_levels``: of pixels, in levels of 255; ``max_cosine_distance``: of features through the whole way.
    """
    theirs = AutoModel.from_pretrained(str(directory), local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(str(directory), local_files_only=True)
    encoded = processor(
        text=TEXTS, images=pictures(), padding="max_length", truncation=True, return_tensors="pt",
        max_length=model.tokenizer.context_length,  # type: ignore[attr-defined]
    )  # fmt: skip
    text_NL = model.tokenizer(TEXTS)
    _check_ids(model, text_NL, encoded["input_ids"], directory)
    cropped_NCHW = torch.stack([_cropped(model, picture) for picture in pictures()])
    std_C11, mean_C11 = model.std_C11.cpu(), model.mean_C11.cpu()
    levels_NCHW = (encoded["pixel_values"] * std_C11 + mean_C11) * 255
    levels = largest([(levels_NCHW, cropped_NCHW)], LEVELS + 0.01, f"{directory}: pixels in levels of 255")

    image_NCHW = torch.stack([model.eval_transform(picture) for picture in pictures()])
    image_ND, text_ND = unit_features(model, image_NCHW, text_NL)
    with torch.no_grad():
        same_pixels = model.normalise(image_NCHW.to(model.device)).cpu()
        texts = {name: value for name, value in encoded.items() if name in ("input_ids", "attention_mask")}
        pairs = [
            (image_ND, F.normalize(features(theirs.get_image_features(pixel_values=same_pixels)), dim=-1)),
            (text_ND, F.normalize(features(theirs.get_text_features(**texts)), dim=-1)),
            (model.clip.logit_scale.view(-1), theirs.logit_scale.view(-1)),
        ]
        if model.clip.logit_bias is not None and hasattr(theirs, "logit_bias"):
            pairs.append((model.clip.logit_bias.view(-1), theirs.logit_bias.view(-1)))
        whole_ND = F.normalize(features(theirs.get_image_features(pixel_values=encoded["pixel_values"])), dim=-1)
        ours_ND, _ = unit_features(model, cropped_NCHW, text_NL)
    difference = largest(pairs, TOLERANCE, f"{directory}: features as transformers loads them")
    distance = float((1 - (whole_ND * ours_ND).sum(1)).clamp(min=0).max())
    return {"max_abs_difference": difference, "max_pixel_levels": round(levels, 2), "max_cosine_distance": distance}


def features(outputs: Any) -> Tensor:
    """transformers 4 returns them alone."""
    return outputs if isinstance(outputs, Tensor) else outputs.pooler_output


def _check_ids(model: TwoTower, ours_NL: Tensor, theirs_NL: Tensor, directory: Path) -> None:
    """The same up to each text's end where the tower sees no further, else all of them."""
    length = ours_NL.shape[1]
    seen_NL = torch.arange(length) < model.text_lengths(ours_NL.to(model.device)).cpu()[:, None]
    if theirs_NL.shape != ours_NL.shape or not torch.equal(ours_NL[seen_NL], theirs_NL[seen_NL]):
        raise DiffersError(f"{directory}: transformers makes other token ids of a text than the model was given")


def _cropped(model: TwoTower, picture: Any) -> Tensor:
    """uint8 CHW, cropped as transformers does: where an odd number of pixels is too much, it rounds down.

    torchvision, whose CenterCrop open_clip uses, rounds to the even: up to one pixel beside it.
    """
    height, width = model.picture_format.size
    form = model.picture_format
    resize = image_transform(form.size, False, interpolation=form.interpolation, resize_mode=form.resize_mode)
    whole_CHW = to_tensor(resize.transforms[0](picture))
    top, left = ((side - size) // 2 for side, size in zip(whole_CHW.shape[1:], (height, width), strict=True))
    return crop(whole_CHW, top, left, height, width)


def usage(model: TwoTower) -> str:
    length = model.tokenizer.context_length  # type: ignore[attr-defined]
    return f"""import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

directory = "path/to/this/directory"
model, processor = AutoModel.from_pretrained(directory).eval(), AutoProcessor.from_pretrained(directory)

picture, texts = Image.open("picture.jpg").convert("RGB"), ["a red circle", "two cats"]
inputs = processor(
    text=texts, images=picture, return_tensors="pt",
    padding="max_length", truncation=True, max_length={length},
)
with torch.no_grad():
    outputs = model(**inputs)
image_features, text_features = outputs.image_embeds, outputs.text_embeds
print(outputs.logits_per_image)"""
