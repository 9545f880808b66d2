"""Texts of real transformers models, tiny ones with random weights, and one of SmolLM2."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from data_tools._language_models import decode, weights
from data_tools._language_models.base import Completion, Request, Sampling
from data_tools._language_models.draw_tokens import draw_tokens
from data_tools._language_models.engines import local
from vlp.types import UserError

WORDS = [
    "a",
    "the",
    "red",
    "green",
    "small",
    "cat",
    "dog",
    "boat",
    "tree",
    "sits",
    "runs",
    "near",
    "behind",
    "two",
    "of",
]
WINDOW = 96
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def save_tiny(folder: Path, kind: str) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 3, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    size: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": WINDOW,
        "initializer_range": 0.4,  # far from equal probabilities
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "llama":
            model: Any = LlamaForCausalLM(LlamaConfig(**size))
        else:  # one layer sees eight tokens back, the other one all
            layers = ["sliding_attention", "full_attention"]
            model = Gemma3ForCausalLM(Gemma3TextConfig(**size, sliding_window=8, layer_types=layers))
    model.save_pretrained(folder)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp(request.param)
    save_tiny(folder, request.param)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder, "llama")
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def engine(model: Path, batch_size: int = 8, **options: Any) -> local.Engine:
    return local.Engine(model=str(model), batch_size=batch_size, dtype="float32", device="cpu", **options)


def request(number: int, prompt: Any, seed: int | None = None) -> Request:
    return Request(f"caption {number}", number, prompt, number if seed is None else seed)


def ragged(number: int, start: str = "") -> list[Request]:
    """Prompts of all lengths from one word to twelve."""
    return [
        request(i, start + " ".join(WORDS[(i + k) % len(WORDS)] for k in range(1 + i * 5 % 12))) for i in range(number)
    ]


def texts(engine: local.Engine, requests: list[Request], sampling: Sampling) -> dict[int, Completion]:
    """By number; each request comes back once."""
    answers = list(engine.complete(requests, sampling))
    assert sorted(r.number for r, _ in answers) == sorted(r.number for r in requests)
    assert all(r is requests[r.number - requests[0].number] for r, _ in answers)
    return {r.number: completion for r, completion in answers}


@pytest.mark.parametrize("start", ["", "the two cats sit near a red house behind three green trees and a boat; "])
def test_a_text_does_not_depend_on_what_stands_beside_it(any_model: Path, start: str):
    """Padding, a start that all share, and rows that leave the batch: all as if each prompt were alone."""
    requests, sampling = ragged(16, start), Sampling(max_tokens=12, stop=("t", "e "))
    together = texts(engine(any_model, 16), requests, sampling)
    assert together == texts(engine(any_model, 5), requests, sampling)
    assert together == {i: texts(engine(any_model, 1), [r], sampling)[i] for i, r in enumerate(requests)}
    assert len({c.tokens for c in together.values()}) > 3, "rows end at different steps"
    tokenizer = AutoTokenizer.from_pretrained(any_model)
    if start:
        assert decode._common_start([tokenizer(r.prompt)["input_ids"] for r in requests]) >= decode.SHARED_FROM


def test_the_likeliest_words_are_those_of_transformers_own_generate(any_model: Path):
    tokenizer, model = AutoTokenizer.from_pretrained(any_model), AutoModelForCausalLM.from_pretrained(any_model)
    requests = ragged(12)
    ours = texts(engine(any_model), requests, Sampling(temperature=0, max_tokens=12, stop=()))
    for i, asked in enumerate(requests):
        ids = tokenizer(asked.prompt, return_tensors="pt")
        written = model.generate(**ids, do_sample=False, max_new_tokens=12, pad_token_id=0)[0, ids.input_ids.shape[1] :]
        ends = written.tolist().index(0) if 0 in written else None
        assert ours[i].text == tokenizer.decode(written[:ends])
        assert ours[i].prompt_tokens == ids.input_ids.shape[1]
        assert ours[i].tokens == len(written)


def test_seeds_decide_the_text(tiny: Path):
    sampling = Sampling(temperature=1.5, top_p=1, max_tokens=12)
    same = texts(engine(tiny), [request(i, "the cat", seed=7) for i in range(6)], sampling)
    assert len({c.text for c in same.values()}) == 1
    other = texts(engine(tiny), [request(i, "the cat") for i in range(6)], sampling)
    assert len({c.text for c in other.values()}) == 6
    assert other == texts(engine(tiny, 2), [request(i, "the cat") for i in range(6)], sampling)


@pytest.mark.parametrize("vocabulary", [50, 1000])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.9, 0.95), (1.0, 1.0), (0.3, 0.5), (3.0, 0.97)])
def test_tokens_are_drawn_as_often_as_they_are_likely(vocabulary: int, temperature: float, top_p: float):
    """Chi-squared against the softmax cut to its nucleus by plain sorting, flat ones with many candidates too."""
    generator = torch.Generator().manual_seed(3)
    logits_V = 3 * torch.randn(vocabulary, generator=generator)
    sorted_V, ids_V = (logits_V.double() / temperature).softmax(0).sort(descending=True)
    kept = int((sorted_V.cumsum(0) - sorted_V < top_p).sum())
    expected_V = torch.zeros(vocabulary, dtype=torch.double)
    expected_V[ids_V[:kept]] = sorted_V[:kept] / sorted_V[:kept].sum()

    draws = 8_000
    sampling = Sampling(temperature=temperature, top_p=top_p)
    drawn = [
        draw_tokens(logits_V.expand(1000, -1), sampling, torch.arange(start, start + 1000), step=start % 7)
        for start in range(0, draws, 1000)
    ]
    counts_V = torch.bincount(torch.cat(drawn), minlength=vocabulary).double()
    assert counts_V[expected_V == 0].sum() == 0, "outside the nucleus"
    often = expected_V * draws >= 5
    counts = torch.cat([counts_V[often], counts_V[~often].sum()[None]])
    wanted = draws * torch.cat([expected_V[often], expected_V[~often].sum()[None]])
    freedom = int((wanted > 0).sum()) - 1
    chi_squared = float(((counts - wanted) ** 2 / wanted.clamp(min=1e-9))[wanted > 0].sum())
    assert chi_squared < freedom + 4 * (2 * freedom) ** 0.5 + 4


def test_draws_of_one_text_are_independent_from_step_to_step():
    logits_BV, seeds_B = torch.zeros(4000, 2), torch.arange(4000)
    first, second = (draw_tokens(logits_BV, Sampling(top_p=1), seeds_B, step) for step in (0, 1))
    pairs = torch.bincount(2 * first + second, minlength=4)
    assert ((pairs - 1000).abs() < 130).all(), "each pair of tokens is as likely as another"


def test_tokens_as_likely_as_the_last_of_the_nucleus_belong_to_it():
    """bfloat16 has many ties, and which of them a sort puts first may depend on the batch."""
    logits_BV = torch.zeros(3000, 200)
    drawn = draw_tokens(logits_BV, Sampling(top_p=0.1), torch.arange(3000), 0)
    assert len(drawn.unique()) == 200


def test_a_text_ends_before_the_first_stop_string(tiny: Path):
    free, number = Sampling(temperature=1.2, max_tokens=40, stop=()), 12
    whole = texts(engine(tiny), ragged(number), free)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    stops = ("t", "ee", " sm")
    ended = texts(engine(tiny), ragged(number), free.model_copy(update={"stop": stops}))
    cut = 0
    for i in range(number):
        places = [place for stop in stops if (place := whole[i].text.find(stop)) >= 0]
        assert ended[i].text == (whole[i].text[: min(places)] if places else whole[i].text)
        cut += bool(places)
        assert ended[i].tokens <= whole[i].tokens
        if places:  # written up to the token that completes the stop string, and no further
            least = len(tokenizer(ended[i].text)["input_ids"])
            assert ended[i].tokens <= least + 3
    assert cut >= 3


def test_prompts_that_do_not_fit_the_window_come_back_with_a_problem(tiny: Path):
    requests = [request(0, "cat " * 90), request(1, "a cat"), request(2, "cat " * 60)]
    answers = texts(engine(tiny), requests, Sampling(max_tokens=40))
    tokens = answers[0].prompt_tokens
    assert answers[0] == Completion("", tokens, problem=f"{tokens} tokens and 40 new ones are more than the model's 96")
    assert answers[2].problem
    assert not answers[1].problem
    assert answers[1].tokens > 0


def test_requests_are_read_some_batches_ahead_and_no_further(tiny: Path):
    read = []

    def endless() -> Iterator[Request]:
        number = 0
        while True:
            read.append(number)
            yield request(number, WORDS[number % len(WORDS)])
            number += 1

    answers = engine(tiny, 2).complete(endless(), Sampling(max_tokens=2))
    assert not read, "nothing is read before it is asked for"
    for _ in range(2 * local.BATCHES_AHEAD):
        next(answers)
    assert len(read) == 2 * local.BATCHES_AHEAD


def test_conversations_go_through_the_models_template(tiny: Path, tmp_path: Path):
    folder = shutil.copytree(tiny, tmp_path / "chat")
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    messages = (("system", "be short"), ("user", "a cat"))
    sampling = Sampling(max_tokens=8)
    chat = texts(engine(folder), [request(0, messages), request(1, "a cat")], sampling)
    as_text = texts(
        engine(folder), [request(0, "<system>be short<user>a cat<assistant>"), request(1, "a cat")], sampling
    )
    assert chat == as_text


def test_conversations_for_a_model_without_template_are_refused(tiny: Path, tmp_path: Path):
    asked = [request(0, (("user", "a cat"),))]
    with pytest.raises(
        UserError, match="has no chat template, so it cannot answer messages: give a prompt with `text`"
    ):
        list(engine(tiny).complete(asked, Sampling()))
    folder = shutil.copytree(tiny, tmp_path / "strict")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}", encoding="utf-8")
    with pytest.raises(UserError, match=r"refuses the prompt's messages \(no system role\)"):
        list(engine(folder).complete(asked, Sampling()))


def test_models_that_cannot_be_used_are_refused_in_one_sentence(tiny: Path, tmp_path: Path):
    def refused(path: Path | str, pattern: str) -> None:
        for use in (lambda e: e.identity(), lambda e: list(e.complete([request(0, "a cat")], Sampling()))):
            with pytest.raises(UserError, match=pattern) as caught:
                use(engine(Path(path)))
            assert "\n" not in str(caught.value)

    refused(tmp_path / "nowhere", "nowhere is no directory: give one, a GGUF file, or a name of the hub")
    refused(tmp_path / "nothing.gguf", r"nothing\.gguf is no file")
    pickled = shutil.copytree(tiny, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    refused(pickled, r"no weights as \*\.safetensors \(it has pytorch_model\.bin\)")


def test_code_that_comes_with_a_model_is_not_run(tiny: Path, tmp_path: Path):
    folder = shutil.copytree(tiny, tmp_path / "foreign")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    mark = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w').close()", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be used by transformers"):
        list(engine(folder).complete([request(0, "a cat")], Sampling()))
    assert not mark.exists()


def test_devices_that_are_not_there_are_refused(tiny: Path):
    with pytest.raises(UserError, match=r"no device 'cuda:77' here .*give cpu, cuda, cuda:1 or mps"):
        local.Engine(model=str(tiny), device="cuda:77").identity()


def test_the_record_names_weights_and_precision_and_no_place(tiny: Path, tmp_path: Path):
    moved = shutil.copytree(tiny, tmp_path / tiny.name)
    here, there = engine(tiny).identity(), engine(moved).identity()
    assert here == there
    assert (here["engine"], here["model"], here["dtype"]) == ("local", tiny.name, "float32")
    model = LlamaForCausalLM.from_pretrained(moved)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    model.save_pretrained(moved)
    assert engine(moved).identity() != here


def test_the_record_names_the_model_however_its_place_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = shutil.copytree(tiny, tmp_path / "tiny-model")
    (model / "inner").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder, written in ((model, "."), (model / "inner", ".."), (tmp_path, "tiny-model/"), (model, "~/tiny-model")):
        monkeypatch.chdir(folder)
        assert local.Engine(model=written).identity()["model"] == "tiny-model"


def test_bfloat16_is_chosen_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False}, raising=False)
    assert weights.dtype_of("auto", cpu) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": True}, raising=False)
    assert weights.dtype_of("auto", cpu) == torch.bfloat16
    assert weights.dtype_of("float16", cpu) == torch.float16


def test_what_was_loaded_stays_out_of_pickles(tiny: Path):
    used = engine(tiny)
    before = texts(used, ragged(3), Sampling(max_tokens=4))
    data = pickle.dumps(used)
    assert len(data) < 2000
    assert texts(pickle.loads(data), ragged(3), Sampling(max_tokens=4)) == before


@pytest.mark.slow
def test_a_real_model_from_a_gguf_file(language_model_file: Path):
    """SmolLM2 in whatever precision suits this processor; reading its file takes a quarter of a minute."""
    pytest.importorskip("gguf", reason="reading GGUF files needs: pip install gguf")
    used = local.Engine(model=str(language_model_file), batch_size=4, device="cpu")
    chat = (("user", "What is the capital of France? Answer with one word."),)
    asked = [request(0, "One, two, three, four,"), request(1, chat), request(2, "The opposite of hot is")]
    answers = texts(used, asked, Sampling(temperature=0, max_tokens=6))
    assert answers[0].text.startswith(" five")
    assert "Paris" in answers[1].text
    assert "cold" in answers[2].text
    assert used.identity()["model"] == language_model_file.name
