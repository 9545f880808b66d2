"""A small real encoder, and makers of pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vlp.data.write import encode_image


class TinyEncoder(nn.Module):
    """Pictures of one colour and texts that begin with ``#rrggbb`` meet at the same point of colour space."""

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        self.logit_scale = torch.tensor(10.0).log()
        self.locked = nn.Dropout(0.5)
        self.num_texts_seen = 0
        self.num_images_seen = 0

    def encode_image(self, image_NCHW: Tensor) -> Tensor:
        self.num_images_seen += len(image_NCHW)
        assert image_NCHW.dtype == torch.uint8
        return self.locked(image_NCHW.float().mean(dim=(2, 3)) - 127.5)

    def encode_text(self, text_NL: Tensor) -> Tensor:
        self.num_texts_seen += len(text_NL)
        return self.locked(text_NL.float() - 127.5)

    def text_lengths(self, text_NL: Tensor) -> Tensor:
        return torch.full((len(text_NL),), text_NL.shape[1])

    def tokenizer(self, texts: list[str]) -> Tensor:
        return torch.tensor([list(bytes.fromhex(text[1:7])) for text in texts])

    def eval_transform(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1)


class ConstantEncoder(TinyEncoder):
    """A collapsed model: every picture and every text has the same features."""

    def __init__(self, value: float = 0.3) -> None:
        super().__init__()
        self.features = torch.full((1, 192), value) * torch.linspace(0.1, 1, 192)

    def encode_image(self, image_NCHW: Tensor) -> Tensor:
        return self.features.repeat(len(image_NCHW), 1)

    def encode_text(self, text_NL: Tensor) -> Tensor:
        return self.features.repeat(len(text_NL), 1)


@pytest.fixture
def encoder() -> TinyEncoder:
    return TinyEncoder()


@pytest.fixture
def constant_encoder() -> ConstantEncoder:
    return ConstantEncoder()


@pytest.fixture
def picture() -> Callable[[str], bytes]:
    """The PNG of one colour, given as ``#rrggbb``."""
    return lambda colour: encode_image(Image.new("RGB", (6, 5), colour))
