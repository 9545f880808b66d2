"""A transformers model in this process: a directory, a GGUF file or a name of the hub, on an accelerator or the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from data_tools._language_models import base
from data_tools._language_models.base import Completion, Request, Sampling
from vlp.types import UserError

BATCHES_AHEAD = 16  # read at once and sorted by length, so that little is padded


class Engine(base.Engine, frozen=True, extra="forbid"):
    """Weights are read from safetensors or GGUF only; nothing that was downloaded is unpickled or run."""

    model: str = Field(description="directory, .gguf file, or name of the hub (owner/name)")
    batch_size: int = Field(default=32, ge=1, description="texts written at once; more is faster on a GPU")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto",
        description="numbers of the model; auto: bfloat16 where the processor multiplies it, else float32",
    )
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, mps; auto: an accelerator where there is one")

    @property
    def at_once(self) -> int:
        return self.batch_size

    def identity(self) -> dict[str, Any]:
        from data_tools._language_models import weights

        path, given = weights.locate(self.model), Path(self.model).expanduser()
        dtype = weights.dtype_of(self.dtype, weights.device_of(self.device))
        return {
            "engine": "local",
            "model": os.path.basename(os.path.abspath(given)) if given.exists() else self.model,
            "weights": weights.fingerprint(path),
            "dtype": str(dtype).removeprefix("torch."),
        }

    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        """A prompt that does not fit the model's window with ``max_tokens`` comes back with a ``problem``."""
        import torch

        from data_tools._language_models import weights
        from data_tools._language_models.decode import Decoder, Row, encode

        device = weights.device_of(self.device)
        model, tokenizer = weights.load(weights.locate(self.model), weights.dtype_of(self.dtype, device), device)
        decoder, window = Decoder(model, tokenizer, sampling), weights.window(model)
        rest = iter(requests)
        while ahead := list(islice(rest, self.batch_size * BATCHES_AHEAD)):
            rows = []
            for request, prompt in zip(ahead, encode(tokenizer, ahead, self.model), strict=True):
                if window and len(prompt) + sampling.max_tokens > window:
                    problem = (
                        f"{len(prompt)} tokens and {sampling.max_tokens} new ones are more than the model's {window}"
                    )
                    yield request, Completion("", len(prompt), problem=problem)
                else:
                    rows.append(Row(request, prompt))
            rows.sort(key=lambda row: len(row.prompt), reverse=True)  # what does not fit the memory is met first
            for start in range(0, len(rows), self.batch_size):
                try:
                    yield from decoder.write(rows[start : start + self.batch_size])
                except torch.OutOfMemoryError as error:
                    raise UserError(
                        f"{device} has no memory for {self.batch_size} texts at once: lower --batch-size"
                    ) from error
