"""ONNX: image.onnx and text.onnx for onnxruntime, with what makes their inputs; any model that torch can trace."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from vlp.encoders import inputs
from vlp.encoders.two_tower import TwoTower
from vlp.export import bpe_files
from vlp.export.formats.base import TEXTS, DiffersError, largest, pictures, unit_features
from vlp.types import UserError

LIBRARY = "onnx"
OPSET = 18
TOLERANCE = 1e-4  # of features of length 1: onnxruntime adds up in another order, and fuses
EXTERNAL_ABOVE = 1 << 30  # bytes of weights; ONNX ends at 2 GiB a file
CODE = "encode.py"


class _ImageTower(nn.Module):
    """uint8 NCHW -> features ND of length 1: with the normalisation inside, nobody can get that wrong."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, model: TwoTower) -> None:
        super().__init__()
        self.clip = model.clip
        self.register_buffer("mean_C11", model.mean_C11.clone())
        self.register_buffer("std_C11", model.std_C11.clone())

    def forward(self, image: Tensor) -> Tensor:
        pixels_NCHW = (image.float() / 255 - self.mean_C11) / self.std_C11
        return F.normalize(self.clip.encode_image(pixels_NCHW, normalize=False), dim=-1)


class _TextTower(nn.Module):
    """int64 NL -> features ND of length 1."""

    def __init__(self, model: TwoTower) -> None:
        super().__init__()
        self.clip = model.clip

    def forward(self, ids: Tensor) -> Tensor:
        return F.normalize(self.clip.encode_text(ids, normalize=False), dim=-1)


def check(model: TwoTower) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(f"--to onnx needs {error.name}: pip install 'vlp[onnx]'") from error
    tokenizer: Any = model.tokenizer
    if isinstance(tokenizer, SimpleTokenizer):
        if tokenizer.reduction_fn is not None:
            raise UserError("--to onnx: tokenizer_kwargs.reduction_mask shortens texts as no other tokenizer does")
        if inputs.of_texts(model)["cleaning"] == "whitespace":
            raise UserError("--to onnx: texts keep their case (cleaning: whitespace), which CLIPTokenizer does not")
    elif tokenizer.strip_sep_token or tokenizer.tokenizer_mode or tokenizer.tokenizer.padding_side == "left":
        raise UserError(
            "--to onnx: the tokenizer does what its files do not tell (strip_sep_token, tokenizer_mode, or padding in "
            "front): export --to open_clip"
        )


def left_out(model: TwoTower) -> list[str]:
    found = []
    if model.captioner is not None:
        found.append("The captioning head is left out: the two towers alone are exported.")
    if inputs.of_texts(model)["cleaning"] != "none":
        found.append(
            "Texts with HTML entities or a broken encoding get other ids: the model's own tokenizer repairs them first."
        )
    return found


def write(model: TwoTower, directory: Path, final: Path) -> None:
    height, width = model.picture_format.size
    image_NCHW = torch.zeros(2, 3, height, width, dtype=torch.uint8, device=model.device)
    _trace(_ImageTower(model), image_NCHW, "image", directory / "image.onnx")
    _trace(_TextTower(model), model.tokenizer(["a", "b"]).to(model.device), "ids", directory / "text.onnx")
    tokenizer: Any = model.tokenizer
    simple = isinstance(tokenizer, SimpleTokenizer)
    (bpe_files.tokenizer(tokenizer) if simple else tokenizer.tokenizer).save_pretrained(directory)
    bias = model.clip.logit_bias
    told = inputs.as_dict(model) | {
        "format": "vlp onnx",
        "opset": OPSET,
        "dimensions": model.openclip_config["model_cfg"]["embed_dim"],
        "logit_scale": model.logit_scale.exp().item(),
        "logit_bias": None if bias is None else bias.item(),
    }
    (directory / "preprocess.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    shutil.copy(Path(__file__).parents[1] / "onnx_example.py", directory / CODE)


def _trace(tower: nn.Module, example: Tensor, name: str, path: Path) -> None:
    import onnx

    try:
        with torch.no_grad():
            program = torch.onnx.export(
                tower.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[name],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--to onnx: torch cannot trace the {path.stem} tower: {reason}") from error
    assert program is not None
    kept = (value.const_value for value in program.model.graph.initializers.values())
    program.save(path, external_data=sum(value.nbytes for value in kept if value is not None) > EXTERNAL_ABOVE)
    onnx.checker.check_model(str(path))


def compare(model: TwoTower, directory: Path) -> dict[str, float]:
    """What the code beside the towers makes of pictures and texts with onnxruntime: the same pixels and ids, and

    ``max_abs_difference`` of features of length 1, in batches of 1 and 3; `TOLERANCE` is the most.
    """
    from vlp.export.onnx_example import Encoder

    encoder = Encoder(directory)
    image_NCHW = torch.stack([model.eval_transform(picture) for picture in pictures()])
    if not torch.equal(image_NCHW, torch.tensor([encoder.pixels(picture).tolist() for picture in pictures()]).byte()):
        raise DiffersError(f"{directory}: {CODE} makes other pixels of a picture than the model was given")
    text_NL = model.tokenizer(TEXTS)
    ids_NL = torch.from_numpy(encoder.ids(TEXTS))
    length = text_NL.shape[1]
    seen_NL = torch.arange(length) < model.text_lengths(text_NL.to(model.device)).cpu()[:, None]
    if not torch.equal(text_NL[seen_NL], ids_NL[seen_NL]):
        raise DiffersError(f"{directory}: {CODE} makes other token ids of a text than the model was given")
    image_ND, text_ND = unit_features(model, image_NCHW, text_NL)
    pairs = []
    for rows in (slice(0, 1), slice(0, 3), slice(1, 4)):
        pairs.append((text_ND[rows], torch.from_numpy(encoder.text_features(TEXTS[rows]))))
        pairs.append((image_ND[rows], torch.from_numpy(encoder.image_features(pictures()[rows]))))
    return {"max_abs_difference": largest(pairs, TOLERANCE, f"{directory}: features by onnxruntime")}


def usage(model: TwoTower) -> str:
    return """import sys

from PIL import Image

directory = "path/to/this/directory"
sys.path.insert(0, directory)
from encode import Encoder  # encode.py of this directory: onnxruntime, numpy, pillow, tokenizers; no torch

encoder = Encoder(directory)
picture, texts = Image.open("picture.jpg"), ["a red circle", "two cats"]
image_features, text_features = encoder.image_features([picture]), encoder.text_features(texts)
print(encoder.logits([picture], texts))"""
