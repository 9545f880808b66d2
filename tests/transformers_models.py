"""Directories as transformers writes them: tiny models of random weights, with processors and tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from tokenizers import SentencePieceUnigramTokenizer
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizerFast,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTokenizer,
)

TEXTS = [
    "a red circle left of a blue square",
    "",
    "Two CATS, one dog & a very long caption " + "about pictures " * 60,
    "ein grüner Stern über dem gelben Dreieck – 星",
    "don't  _mix_   white\tspace! (ever)",
]
SHAPES = ((97, 61), (40, 200), (64, 64), (33, 32))  # height, width: odd sizes whose crop is central either way


def tower(**changes: Any) -> dict[str, Any]:
    return {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 50, **changes}


def clip_config(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **changes: Any) -> CLIPConfig:
    """Of a text tower with CLIP's vocabulary, and an image tower of other sizes."""
    text_config = tower(max_position_embeddings=16, **(text or {}))
    vision_config = tower(hidden_size=48, num_attention_heads=3, image_size=32, patch_size=8, **(vision or {}))
    return CLIPConfig(**{"text_config": text_config, "vision_config": vision_config, "projection_dim": 24, **changes})


def siglip_config(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> SiglipConfig:
    text_config = tower(**{"max_position_embeddings": 12, "vocab_size": 400, "projection_size": 48, **(text or {})})
    vision_config = tower(hidden_size=48, num_attention_heads=3, image_size=32, patch_size=8, **(vision or {}))
    return SiglipConfig(text_config=text_config, vision_config=vision_config)


def shaken(model: torch.nn.Module, seed: int = 0) -> Any:
    """All weights random, those that begin at 0 or 1 too, so that each takes part in what is compared."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if value.ndim:
            value.data += 0.1 * torch.randn(value.shape, generator=generator)
        elif name == "logit_scale":
            value.data.fill_(2.5)
    return model.eval()


def clip_tokenizer(directory: Path) -> CLIPTokenizerFast:
    """CLIP's own, as its repositories have it: from vocab.json and merges.txt."""
    simple = SimpleTokenizer()
    directory.mkdir(parents=True, exist_ok=True)
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    (directory / "vocab.json").write_text(json.dumps({names.get(word, word): i for word, i in simple.encoder.items()}))
    merges = "\n".join(" ".join(pair) for pair in simple.bpe_ranks)
    (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 16})
    )
    return CLIPTokenizerFast.from_pretrained(str(directory))


def write_clip(directory: Path, config: CLIPConfig | None = None, **processor: Any) -> CLIPModel:
    torch.manual_seed(0)
    model = shaken(CLIPModel(config or clip_config()))
    clip_tokenizer(directory)
    model.save_pretrained(directory)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**{**sizes, **processor}).save_pretrained(directory)
    return model


def sentencepiece_model(path: Path) -> None:
    """A vocabulary of 400 pieces with SigLIP's special ones: </s> is 1, <unk> is 2, <pad> 0."""
    import sentencepiece

    sentences = path.with_suffix(".txt")
    words = "a red blue green circle square star dog cat two one of left right above the picture caption long about"
    sentences.write_text("\n".join(" ".join(np.random.default_rng(i).permutation(words.split())) for i in range(300)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(sentences), model_prefix=str(path.with_suffix("")), vocab_size=150, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    sentences.unlink()
    path.with_suffix(".vocab").unlink()


def write_siglip(directory: Path, config: SiglipConfig | None = None, gemma: bool = False) -> SiglipModel:
    """With SigLIP's own kind of tokenizer, or, as SigLIP2's repositories, a fast one that keeps case."""
    torch.manual_seed(0)
    model = shaken(SiglipModel(config or siglip_config()))
    directory.mkdir(parents=True, exist_ok=True)
    if gemma:
        _gemma_tokenizer().save_pretrained(directory)
    else:
        sentencepiece_model(directory / "spiece.model")
        SiglipTokenizer(
            str(directory / "spiece.model"), model_max_length=12, model_input_names=["input_ids"]
        ).save_pretrained(directory)
    model.save_pretrained(directory)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory)
    return model


def _gemma_tokenizer() -> PreTrainedTokenizerFast:
    unigram = SentencePieceUnigramTokenizer()
    unigram.train_from_iterator(
        TEXTS * 20, vocab_size=120, special_tokens=["<pad>", "<eos>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    from tokenizers.processors import TemplateProcessing

    unigram._tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=unigram._tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        padding_side="right", model_input_names=["input_ids"],
    )  # fmt: skip


def pictures() -> list[Image.Image]:
    """Noise, and large areas of one colour."""
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]
    areas = np.kron(generator.integers(0, 256, (4, 5, 3)), np.ones((30, 20, 1))).astype(np.uint8)
    return [Image.fromarray(pixels) for pixels in (*noise, areas)]


def features(outputs: Any) -> Tensor:
    """Of get_image_features and get_text_features, which returned a tensor before transformers 5."""
    return outputs if isinstance(outputs, Tensor) else outputs.pooler_output
