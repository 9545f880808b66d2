"""Features of pictures and texts by onnxruntime: pip install onnxruntime pillow numpy tokenizers.

A tokenizer without ``tokenizer.json`` needs transformers and sentencepiece instead of tokenizers.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Encoder:
    """The two towers of the directory that holds this file. Features have length 1, so products are cosines."""

    def __init__(
        self, directory: str | Path | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        self.directory = Path(directory or Path(__file__).parent)
        self.told: dict[str, Any] = json.loads((self.directory / "preprocess.json").read_text(encoding="utf-8"))
        self.image, self.text = (
            onnxruntime.InferenceSession(str(self.directory / f"{name}.onnx"), providers=list(providers))
            for name in ("image", "text")
        )
        self._tokenize = _tokenizer(self.directory, self.told["texts"]["length"])

    def image_features(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Of Pillow's pictures: float32, a row each."""
        height, width = self.told["pictures"]["size"]
        pixels = np.empty((len(pictures), 3, height, width), np.uint8)
        for place, picture in zip(pixels, pictures, strict=True):
            place[:] = self.pixels(picture)
        return self.image.run(None, {"image": pixels})[0]

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """Of strings: float32, a row each."""
        return self.text.run(None, {"ids": self.ids(texts)})[0]

    def logits(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
        """Scores of each picture (row) with each text: softmax them over the texts, or, with a bias, sigmoid."""
        cosines = self.image_features(pictures) @ self.text_features(texts).T
        return self.told["logit_scale"] * cosines + (self.told["logit_bias"] or 0)

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """uint8, colours x height x width; the tower itself standardises them."""
        told = self.told["pictures"]
        (height, width), mode = told["size"], told["resize_mode"]
        resample, picture = _FILTERS[told["interpolation"]], picture.convert("RGB")
        if mode == "squash":
            picture = picture.resize((width, height), resample)
        elif mode == "shortest" and height == width:
            short, long = sorted(picture.size)
            sides = (height, int(height * long / short))
            picture = picture.resize(sides if picture.width <= picture.height else sides[::-1], resample)
        else:
            ratios = picture.width / width, picture.height / height
            ratio = max(ratios) if mode == "longest" else min(ratios)
            resample = resample if mode == "longest" else Image.Resampling.BICUBIC
            picture = picture.resize((round(picture.width / ratio), round(picture.height / ratio)), resample)
        left, top = _start(picture.width, width), _start(picture.height, height)
        canvas = Image.new("RGB", (width, height), (told.get("fill_color", 0),) * 3)
        canvas.paste(picture, (-left, -top))
        return np.asarray(canvas).transpose(2, 0, 1)

    def ids(self, texts: Sequence[str]) -> np.ndarray:
        """int64, a text a row, filled up to the length of the tower."""
        told = self.told["texts"]
        rows = np.full((len(texts), told["length"]), told["padding"], np.int64)
        for row, ids in zip(rows, self._tokenize([_clean(text, told["cleaning"]) for text in texts]), strict=True):
            row[: len(ids)] = ids
        return rows


def _start(side: int, wanted: int) -> int:
    """Where the centre begins; negative where the picture is too small."""
    return round((side - wanted) / 2) if side >= wanted else -((wanted - side) // 2)


def _clean(text: str, how: str) -> str:
    if how == "canonicalize":
        text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation)).lower()
    elif how == "lower":
        text = text.lower()
    return text if how == "none" else " ".join(text.split())


def _tokenizer(directory: Path, length: int) -> Callable[[list[str]], list[list[int]]]:
    if (directory / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        fast = Tokenizer.from_file(str(directory / "tokenizer.json"))
        fast.no_padding()
        fast.enable_truncation(length)
        return lambda texts: [encoding.ids for encoding in fast.encode_batch(texts)]
    from transformers import AutoTokenizer

    slow = AutoTokenizer.from_pretrained(str(directory))
    return lambda texts: slow(texts, truncation=True, max_length=length).input_ids
