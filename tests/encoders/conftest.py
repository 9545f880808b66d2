"""Fixtures of the encoder tests: a small text tower of transformers on disk, every kind of captioner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizerFast

from vlp.encoders.captioner import CaptionerOptions
from vlp.encoders.openclip import ModelOptions, build
from vlp.encoders.two_tower import CaptionCounts, TwoTower

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


# ---- Captioners

COCAS = ["CoCa", "CoCa without class token", "CoCa without pooler", "CoCa with a norm behind its pool"]
HEADS = [
    *("head", "head on a text tower of its own", "head behind a class token", "head on a timm tower"),
    *("half on a tower that sees all", "half on BERT"),
]
TEXTS = ["a red circle left of a blue square", "a dog", "", "two cats, one dog and a very long caption of them all"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``captioner_kind`` or ``coca_kind`` is called with each."""
    for name, kinds in (("captioner_kind", [*COCAS, *HEADS]), ("coca_kind", COCAS)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, kinds)


class Captioners:
    """Models of every kind that tells captions, and what they tell."""

    TEXTS = TEXTS
    HEAD = CaptionerOptions(layers=2, width=16, heads=2, queries=5)
    HALF = CaptionerOptions(layers=1, width=16, heads=2, queries=5, text_layers=2)

    def __init__(self, tiny_model: dict[str, Any], tiny_coca: dict[str, Any], request: pytest.FixtureRequest) -> None:
        self._clip, self._coca, self._request = tiny_model, tiny_coca, request

    @staticmethod
    def changed(config: dict[str, Any], **parts: dict[str, Any]) -> dict[str, Any]:
        """``config`` with other values in some of its sections; None takes one away."""
        changed = dict(config)
        for section, values in parts.items():
            merged = {**config[section], **values}
            changed[section] = {name: value for name, value in merged.items() if value is not None}
        return changed

    def options(self, kind: str) -> ModelOptions:
        wide = {"text_cfg": {"width": 64}, "multimodal_cfg": {"width": 64}}
        norm_behind = {"attentional_pool": None, "pool_type": "avg", "final_ln_after_pool": True}
        timm = {"image_size": 32, "timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear"}
        own = {**self._clip, "custom_text": True}
        configs: dict[str, Callable[[], dict[str, Any]]] = {
            "CoCa": lambda: self._coca,
            "CoCa without class token": lambda: self.changed(self._coca, text_cfg={"embed_cls": None}),
            "CoCa without pooler": lambda: self.changed(self._coca, vision_cfg={"attentional_pool": None}, **wide),
            "CoCa with a norm behind its pool": lambda: self.changed(self._coca, vision_cfg=norm_behind, **wide),
            "head": lambda: self._clip,
            "head on a text tower of its own": lambda: own,
            "head behind a class token": lambda: self.changed(own, text_cfg={"embed_cls": True}),
            "head on a timm tower": lambda: {**self._clip, "vision_cfg": timm},
            "half on a tower that sees all": lambda: self.changed(own, text_cfg={"no_causal_mask": True}),
            "half on BERT": lambda: self._request.getfixturevalue("bert_model"),
        }
        heads = {"CoCa": None, "head": self.HEAD, "half": self.HALF}
        return ModelOptions(config=configs[kind](), captioner=heads[kind.split()[0]])

    def shaken(self, kind: str) -> TwoTower:
        """With other values in every bias, norm and logit, so that nothing is 0 by chance; in evaluation mode."""
        model = build(self.options(kind), seed=0).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return model

    @staticmethod
    def pictures(rows: int = len(TEXTS), views: int = 1, seed: int = 0) -> Tensor:
        """VNCHW."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (views, rows, 3, 32, 32), generator=generator, dtype=torch.uint8)

    @staticmethod
    def texts(model: TwoTower, *texts: str) -> Tensor:
        """NL; by default of several lengths, one of no word."""
        return model.tokenizer(list(texts) or TEXTS)

    @staticmethod
    def loss(model: TwoTower, image_VNCHW: Tensor, text_NL: Tensor, smoothing: float = 0.0) -> dict[str, Tensor]:
        """What `TwoTower.forward` gives for a batch of one process."""
        counts = CaptionCounts(model.special_tokens.told(text_NL).sum() / len(text_NL), smoothing)
        return model(image_VNCHW, text_NL[None], captions=counts)

    @staticmethod
    def logits(model: TwoTower, image_NCHW: Tensor, text_NL: Tensor) -> Tensor:
        """Of the id after each but the last, computed on whole texts (N L-1 V)."""
        path = model.caption_path()
        assert path is not None
        return path.states(text_NL[:, :-1], model.caption_memory(image_NCHW)) @ path.head_WV

    @staticmethod
    def twin(model: TwoTower) -> open_clip.CoCa:
        """open_clip's own CoCa with the same weights and the same mask of the class token."""
        config = {name: v for name, v in model.openclip_config["model_cfg"].items() if name != "custom_text"}
        twin = open_clip.CoCa(**config)
        twin.load_state_dict(model.clip.state_dict())
        twin.text.correct_cls_mask = model.clip.text.correct_cls_mask
        return twin


@pytest.fixture
def captioners(tiny_model: dict[str, Any], tiny_coca: dict[str, Any], request: pytest.FixtureRequest) -> Captioners:
    return Captioners(tiny_model, tiny_coca, request)
