"""Fixtures of the encoder tests: a small text tower of transformers on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizerFast

from vlp.encoders.two_tower import TwoTower

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "square", "left", "of"]


@pytest.fixture(scope="session")
def bert_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A three-layer BERT with its tokenizer, stored in half precision as many are."""
    directory = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    torch.manual_seed(0)
    BertModel(config).to(torch.float16).save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(directory)
    return directory


@pytest.fixture
def bert_model(tiny_model: dict, bert_directory: Path) -> dict:
    """A model_cfg whose text tower is that BERT."""
    return {**tiny_model, "text_cfg": {"hf_model_name": str(bert_directory), "context_length": 16}}


@pytest.fixture
def features_of() -> Callable[..., tuple[Tensor, ...]]:
    """``features_of(model, image_NCHW, texts)``: image and text features ND, logit scale, logit bias."""

    def run(model: TwoTower, image_NCHW: Tensor, texts: list[str]) -> tuple[Tensor, ...]:
        outputs = model(image_NCHW[None], model.tokenizer(texts)[None])
        return outputs["image"][:, 0], outputs["text"][:, 0], outputs["logit_scale"], outputs["logit_bias"]

    return run
