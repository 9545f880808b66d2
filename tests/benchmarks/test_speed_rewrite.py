"""The benchmark of rewrites runs with a tiny model and writes what the table needs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(__file__).parents[2] / "benchmarks" / "speed"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules, which find each other beside them as when they run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("tokenizer", "rewrite", "run"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: importlib.import_module(name) for name in ("rewrite", "run")}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model of two layers with random weights, whose tokens are bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(tmp_path)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**size, vocab_size=tokenizer.get_vocab_size(), bos_token_id=None, eos_token_id=0)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_each_batch_size_is_measured_beside_generate(
    scripts: dict[str, ModuleType], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "rewrite.json"
    options = f"--model {tiny} --count 4 --batch-sizes 1 4 --dtypes float32 --device cpu --repeats 2 --json {file}"
    monkeypatch.setattr(sys, "argv", ["rewrite", *options.split()])
    assert not scripts["rewrite"].main()
    result = json.loads(file.read_text(encoding="utf-8"))
    assert list(result["rows"]) == ["float32, batch 1", "float32, batch 4"]
    for row in result["rows"].values():
        for writer in ("vlp", "generate"):
            assert row[writer]["texts"] == 4
            assert row[writer]["problems"] == 0
        assert row["vlp"]["read"] == row["generate"]["read"] > 50, "both read the same prompts"
        assert row["ratio"]["min"] > 0
    lines = scripts["run"].table({"rewrite": result}).splitlines()
    assert len(lines) == 2 + 2
    assert all(line.count("|") == 4 for line in lines)
