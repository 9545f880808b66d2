"""open_clip's own tokenizer as one of transformers: the same ids from ``tokenizer.json``.

Ids behind the end of a text differ: open_clip fills texts up with 0, which is "!", CLIPTokenizer with the end itself.
A pad token "!" would give the same, but then no text may have one.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from open_clip.tokenizer import SimpleTokenizer

_NAMES = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


def tokenizer(simple: SimpleTokenizer) -> Any:
    """A ``CLIPTokenizerFast`` with the vocabulary of ``simple``."""
    from transformers import CLIPTokenizerFast

    with tempfile.TemporaryDirectory() as directory:
        vocabulary = {_NAMES.get(word, word): number for word, number in simple.encoder.items()}
        merges = "\n".join(" ".join(pair) for pair in simple.bpe_ranks)
        (Path(directory) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (Path(directory) / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
        described = {"tokenizer_class": "CLIPTokenizer", "model_max_length": simple.context_length}
        (Path(directory) / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")
        return CLIPTokenizerFast.from_pretrained(directory)
