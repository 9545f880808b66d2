"""vLLM in this process, on its GPUs; for one that runs elsewhere there is the engine server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

from pydantic import Field

from data_tools._language_models import base
from data_tools._language_models.base import Completion, Request, Sampling
from vlp.types import UserError


class Engine(base.Engine, frozen=True, extra="forbid"):
    """Texts come back when all that were read ahead are written: vLLM sorts them into batches itself."""

    model: str = Field(description="directory, or name of the hub (owner/name)")
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs that share the model")
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1, description="share of their memory that vLLM takes")
    read_ahead: int = Field(default=1024, ge=1, description="texts given to vLLM at once")

    @property
    def at_once(self) -> int:
        return self.read_ahead

    def identity(self) -> dict[str, Any]:
        return {"engine": "vllm", "model": self.model}

    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        """A prompt that does not fit the model's window with ``max_tokens`` comes back with a ``problem``."""
        llm = _loaded(self)
        from vllm import SamplingParams  # type: ignore[import-not-found, unused-ignore]

        from data_tools._language_models.decode import encode

        options = {**sampling.model_dump(exclude={"stop"}), "stop": list(sampling.stop)}
        window, rest = llm.llm_engine.model_config.max_model_len, iter(requests)
        while ahead := list(islice(rest, self.read_ahead)):
            asked: list[tuple[Request, list[int]]] = []
            for request, prompt in zip(ahead, encode(llm.get_tokenizer(), ahead, self.model), strict=True):
                if len(prompt) + sampling.max_tokens > window:
                    problem = (
                        f"{len(prompt)} tokens and {sampling.max_tokens} new ones are more than the model's {window}"
                    )
                    yield request, Completion("", len(prompt), problem=problem)
                else:
                    asked.append((request, prompt))
            answers = llm.generate(
                [{"prompt_token_ids": prompt} for _, prompt in asked],
                [SamplingParams(seed=request.seed, **options) for request, _ in asked],
                use_tqdm=False,
            )
            for (request, prompt), answer in zip(asked, answers, strict=True):
                output = answer.outputs[0]
                yield request, Completion(output.text, len(prompt), len(output.token_ids))


@lru_cache(maxsize=1)
def _loaded(engine: Engine) -> Any:
    try:
        from vllm import LLM
    except ImportError as error:
        raise UserError(
            f"the engine vllm needs vLLM ({error}): `pip install vllm` on a machine with a GPU, or let a vLLM "
            "elsewhere serve and give --engine server"
        ) from error
    try:
        return LLM(
            model=engine.model,
            tensor_parallel_size=engine.tensor_parallel_size,
            gpu_memory_utilization=engine.gpu_memory_utilization,
            trust_remote_code=False,
            load_format="safetensors",
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"vLLM cannot load {engine.model}: {(str(error).strip().splitlines() or [''])[0]}") from error
