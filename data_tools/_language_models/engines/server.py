"""Any OpenAI-compatible server: vLLM, llama.cpp, a hosted model; many requests in flight."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

from pydantic import Field

from data_tools._language_models import base
from data_tools._language_models.base import Completion, Request, Sampling


class Engine(base.Engine, frozen=True, extra="forbid"):
    url: str = Field(description="address of the server up to /v1")
    model: str = Field(description="name of the model, as the server calls it")
    in_flight: int = Field(default=64, ge=1, description="requests at once")
    key_variable: str = Field(default="OPENAI_API_KEY", description="environment variable that holds the key")

    def identity(self) -> dict[str, Any]:
        return {"engine": "server", "model": self.model}

    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        import openai

        client = openai.OpenAI(base_url=self.url, api_key=os.environ.get(self.key_variable, "none"), max_retries=4)
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens}
        rest = iter(requests)

        def ask(request: Request) -> Completion:
            options: dict[str, Any] = {**drawn, "model": self.model, "seed": request.seed, "stop": list(sampling.stop)}
            if isinstance(request.prompt, str):
                answer = client.completions.create(prompt=request.prompt, **options)
                text = answer.choices[0].text
            else:
                messages: Any = [{"role": role, "content": content} for role, content in request.prompt]
                reply = client.chat.completions.create(messages=messages, **options)
                answer, text = reply, reply.choices[0].message.content or ""
            return Completion(text, answer.usage.prompt_tokens, answer.usage.completion_tokens)

        with ThreadPoolExecutor(self.in_flight) as pool:
            waiting: dict[Future[Completion], Request] = {}
            while True:
                for request in islice(rest, self.in_flight * 2 - len(waiting)):
                    waiting[pool.submit(ask, request)] = request
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
