"""The Python API: load a model, embed, compare, evaluate it or functions of one's own.

Its names are those of the package itself: ``import vlp; vlp.load("runs/quickstart")``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vlp import distributed
from vlp.data.ahead import batches_ahead
from vlp.data.samples import BadSample, decode_image, upright_rgb
from vlp.encoders import openclip
from vlp.encoders.evaluating import evaluating
from vlp.encoders.two_tower import TwoTower
from vlp.evaluation import run as evaluation
from vlp.evaluation.embed import Encoder, embed_texts
from vlp.evaluation.run import Result
from vlp.types import UserError

__all__ = ["Functions", "Model", "Picture", "Result", "evaluate", "load"]

Picture = Image.Image | Path | str | bytes  # a picture, its file, or the bytes of a file
_DECODERS = 8


class Model:
    """An image-text model in evaluation mode.

    Attributes:
        name: the MODEL that it was loaded from.
        towers: the torch module, for what is not here.
    """

    def __init__(self, name: str, towers: TwoTower) -> None:
        self.name = name
        self.towers = towers

    def embed_images(self, pictures: Iterable[Picture], batch_size: int = 64) -> Tensor:
        """L2-normalised fp32 features, one row a picture (N x D), on the CPU.

        Transparency is laid on white.

        Raises:
            UserError: a picture cannot be read; the sentence names it.
        """
        transform = self.towers.eval_transform
        with evaluating(self.towers):
            features = [
                self.towers.encode_image(torch.stack(batch).to(self.towers.device)).float().cpu()
                for batch in batches_ahead(lambda one: transform(_opened(one)), list(pictures), batch_size, _DECODERS)
            ]
        return F.normalize(torch.cat([torch.zeros(0, self.width), *features]), dim=1)

    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """L2-normalised fp32 features, one row a text (N x D), on the CPU."""
        return embed_texts(self.towers, texts, batch_size).cpu() if texts else torch.zeros(0, self.width)

    def similarity(self, image_ND: Tensor, text_MD: Tensor) -> Tensor:
        """Cosines of each picture with each text (N x M), from -1 to 1."""
        return image_ND @ text_MD.T

    def probabilities(self, image_ND: Tensor, text_MD: Tensor) -> Tensor:
        """Of each picture how likely the model takes each of the texts (N x M).

        A softmax over the texts, so that a row sums up to 1 (CLIP); for a model with a logit bias (SigLIP) each pair by
        itself, by a sigmoid.
        """
        logits = self.similarity(image_ND, text_MD) * self.towers.logit_scale.detach().exp().cpu()
        bias = self.towers.clip.logit_bias
        return logits.softmax(dim=1) if bias is None else (logits + bias.detach().cpu()).sigmoid()

    @property
    def width(self) -> int:
        """Number of features, D."""
        return int(self.towers.openclip_config["model_cfg"]["embed_dim"])


class Functions:
    """Two functions of one's own, which `evaluate` takes as it takes a model.

    Args:
        images: of a list of RGB pictures their features (N x D: tensor, array or lists), of any length.
        texts: of a list of strings the same.
        logit_scale: multiplier of the cosines, where a figure needs one (that of a loss, none of retrieval's).
    """

    def __init__(
        self,
        images: Callable[[list[Image.Image]], Any],
        texts: Callable[[list[str]], Any],
        name: str = "functions",
        logit_scale: float = 100.0,
    ) -> None:
        self.name = name
        self._images, self._texts = images, texts
        self.logit_scale = torch.tensor(math.log(logit_scale))
        self.device = torch.device("cpu")
        # Evaluation moves tensors about: pictures and texts travel as numbers.
        self._pictures: dict[int, Image.Image] = {}
        self._numbers = itertools.count()
        self._known: dict[str, int] = {}

    def eval_transform(self, picture: Image.Image) -> Tensor:
        number = next(self._numbers)
        self._pictures[number] = picture
        return torch.tensor([number])

    def encode_image(self, number_N1: Tensor) -> Tensor:
        return _rows(self._images([self._pictures.pop(number) for number in number_N1[:, 0].tolist()]), len(number_N1))

    def tokenizer(self, texts: list[str]) -> Tensor:
        return torch.tensor([[self._known.setdefault(text, len(self._known))] for text in texts])

    def encode_text(self, number_N1: Tensor) -> Tensor:
        text_of = list(self._known)
        return _rows(self._texts([text_of[number] for number in number_N1[:, 0].tolist()]), len(number_N1))

    def text_lengths(self, number_N1: Tensor) -> Tensor:
        return torch.ones_like(number_N1[:, 0])

    def modules(self) -> Iterator[nn.Module]:
        return iter(())


def load(model: str | Path, device: str | torch.device | None = None) -> Model:
    """The model that ``model`` names as on the command line: a run, an export, ``NAME:TAG``, ``hf-hub:`` ...

    Args:
        device: an accelerator where there is one, else the CPU, without it.

    Raises:
        UserError: nothing is there, or it cannot be loaded.
    """
    return Model(str(model), openclip.load(str(model), device or distributed.device()))


def evaluate(model: Model | Functions, sets: Sequence[str | Path], batch_size: int = 256) -> list[Result]:
    """The figures of ``model`` on evaluation sets, in their order, as of ``vlp eval --on``.

    ``result.scores.metrics`` has them by CLIP_benchmark's names, ``result.to_json()`` all that is known.

    Raises:
        UserError: a set is not there or not whole, or two have one name.
    """
    encoder = model.towers if isinstance(model, Model) else cast(Encoder, model)
    weights = model.towers.weights if isinstance(model, Model) else "none"
    return evaluation.evaluate(encoder, sets, batch_size, model.name, weights)


def _opened(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return upright_rgb(picture)
    if isinstance(picture, bytes):
        return _decoded(picture, "a picture given as bytes")
    return _decoded(Path(picture).expanduser().read_bytes(), str(picture))


def _decoded(content: bytes, name: str) -> Image.Image:
    try:
        return decode_image(content)
    except BadSample as error:
        raise UserError(f"{name} is no picture that can be read ({error}): convert it, or leave it out") from error


def _rows(features: Any, number: int) -> Tensor:
    features_ND = torch.as_tensor(features)
    if features_ND.ndim != 2 or len(features_ND) != number:
        raise UserError(
            f"a function for {number} inputs gave features of shape {tuple(features_ND.shape)}: it must be "
            f"({number}, D), a row each"
        )
    return features_ND
