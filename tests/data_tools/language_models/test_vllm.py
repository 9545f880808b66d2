"""The engine vllm against a stand-in for vLLM, which needs a GPU: these tests say what is asked of it, no more."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from data_tools._language_models.base import Completion, Request, Sampling
from data_tools._language_models.engines import vllm
from vlp.types import UserError


@dataclass(frozen=True)
class SamplingParams:
    """The fields of vLLM's own that we set; another name is a TypeError, as there."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop: list[str]


class LLM:
    """Says each prompt backwards; a token is a character."""

    made: list[dict[str, Any]] = []  # noqa: RUF012
    calls: list[list[SamplingParams]] = []  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        if options["model"] == "broken":
            raise ValueError("no such model\nand much more")
        self.made.append(options)
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=100))

    def get_tokenizer(self) -> Any:
        class Tokenizer:
            chat_template = "there is one"

            def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
                return {"input_ids": [[ord(c) for c in text] for text in texts]}

            def apply_chat_template(
                self, turns: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool
            ) -> str:
                assert not tokenize
                assert add_generation_prompt
                return "".join(f"[{turn['role']}]{turn['content']}" for turn in turns)

        return Tokenizer()

    def generate(self, prompts: list[dict[str, Any]], params: list[SamplingParams], use_tqdm: bool) -> list[Any]:
        self.calls.append(params)
        texts = ["".join(map(chr, reversed(prompt["prompt_token_ids"]))) for prompt in prompts]
        return [SimpleNamespace(outputs=[SimpleNamespace(text=text, token_ids=[*range(len(text))])]) for text in texts]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[LLM]]:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    LLM.made, LLM.calls = [], []
    vllm._loaded.cache_clear()
    yield LLM
    vllm._loaded.cache_clear()


def test_requests_come_back_with_their_texts_and_seeds_go_along(stand_in: type[LLM]):
    engine = vllm.Engine(model="owner/name", tensor_parallel_size=2, gpu_memory_utilization=0.5, read_ahead=2)
    requests = [
        Request("c", 0, "abc", 11),
        Request("c", 1, (("system", "s"), ("user", "u")), 12),
        Request("c", 2, "x", 13),
    ]
    sampling = Sampling(temperature=0.7, top_p=0.8, max_tokens=9, stop=("\n", "END"))
    answers = dict(engine.complete(requests, sampling))
    assert answers == {
        requests[0]: Completion("cba", 3, 3),
        requests[1]: Completion("u]resu[s]metsys[", 16, 16),
        requests[2]: Completion("x", 1, 1),
    }
    assert [[p.seed for p in call] for call in stand_in.calls] == [[11, 12], [13]], "two were read ahead"
    assert stand_in.calls[0][0] == SamplingParams(0.7, 0.8, 9, 11, ["\n", "END"])
    list(engine.complete(requests, sampling))
    assert len(stand_in.made) == 1, "the model is loaded once"
    made = stand_in.made[0]
    assert (made["model"], made["tensor_parallel_size"], made["gpu_memory_utilization"]) == ("owner/name", 2, 0.5)
    assert (made["trust_remote_code"], made["load_format"]) == (False, "safetensors")


def test_prompts_that_do_not_fit_come_back_with_a_problem(stand_in: type[LLM]):
    long, short = Request("c", 0, "a" * 95, 1), Request("c", 1, "a" * 90, 2)
    answers = dict(vllm.Engine(model="m").complete([long, short], Sampling(max_tokens=10)))
    assert answers[long].problem == "95 tokens and 10 new ones are more than the model's 100"
    assert not answers[short].problem
    assert dict(vllm.Engine(model="m").complete([long], Sampling(max_tokens=10)))[long].problem


def test_a_model_that_vllm_cannot_load_is_one_sentence(stand_in: type[LLM]):
    with pytest.raises(UserError, match=r"^vLLM cannot load broken: no such model$"):
        list(vllm.Engine(model="broken").complete([Request("c", 0, "a", 1)], Sampling()))


def test_without_vllm_the_cure_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    vllm._loaded.cache_clear()
    with pytest.raises(UserError, match=r"`pip install vllm` .* --engine server"):
        list(vllm.Engine(model="m").complete([Request("c", 0, "a", 1)], Sampling()))


def test_the_record_has_no_sizes_of_the_machine():
    assert vllm.Engine(model="m", tensor_parallel_size=4).identity() == {"engine": "vllm", "model": "m"}
