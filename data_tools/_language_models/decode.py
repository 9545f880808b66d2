"""Texts of a causal transformers model for a batch of prompts, each as it would be alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from data_tools._language_models.base import Completion, Request, Sampling
from data_tools._language_models.draw_tokens import draw_tokens
from vlp.types import UserError

SHARED_FROM = 16  # tokens at the start of all prompts of a batch that are worth a pass of their own
LIVE_SHARE = 0.75  # finished rows are taken out of the batch when no more than this share of it goes on


@dataclass
class Row:
    """A prompt and what the model has written so far."""

    request: Request
    prompt: list[int]
    written: list[int] = field(default_factory=list)
    ended: bool = False


def encode(tokenizer: Any, requests: Sequence[Request], name: str) -> list[list[int]]:
    """Ids of each prompt; conversations go through the tokenizer's chat template.

    Raises:
        UserError: a conversation for a model that has no template, or whose template refuses it.
    """
    texts: list[str] = []
    for request in requests:
        if isinstance(request.prompt, str):
            texts.append(request.prompt)
            continue
        if not tokenizer.chat_template:
            raise UserError(f"{name} has no chat template, so it cannot answer messages: give a prompt with `text`")
        turns = [{"role": role, "content": content} for role, content in request.prompt]
        try:
            texts.append(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise UserError(
                f"the chat template of {name} refuses the prompt's messages ({error}): change their roles or order"
            ) from error
    # Templates write the tokens that begin a text themselves.
    plain = all(isinstance(request.prompt, str) for request in requests)
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=plain)["input_ids"]
    return encoded


class Decoder:
    """A model with its tokenizer, writing batch after batch."""

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling) -> None:
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        ends = model.generation_config.eos_token_id
        self.ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        known = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in known
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    @torch.inference_mode()
    def write(self, rows: Sequence[Row]) -> Iterator[tuple[Request, Completion]]:
        """Each request with its text, as soon as the text has ended."""
        seeds_B = torch.tensor([row.request.seed for row in rows], device=self.model.device)
        logits_BV, cache, mask_BL = self._read(rows)
        for step in range(self.sampling.max_tokens):
            ids_B = draw_tokens(logits_BV, self.sampling, seeds_B, step)
            going = []
            for place, (row, token) in enumerate(zip(rows, ids_B.tolist(), strict=True)):
                if row.ended:
                    continue
                row.written.append(token)
                if completion := self._ended(row):
                    row.ended = True
                    yield row.request, completion
                else:
                    going.append(place)
            if not going:
                return
            if len(going) <= LIVE_SHARE * len(rows):
                rows = [rows[place] for place in going]
                keep = torch.tensor(going, device=ids_B.device)
                cache.batch_select_indices(keep)
                ids_B, mask_BL, seeds_B = ids_B[keep], mask_BL[keep], seeds_B[keep]
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(rows), 1)], 1)
            logits_BV, cache = self._forward(ids_B[:, None], mask_BL, cache)

    def _read(self, rows: Sequence[Row]) -> tuple[Tensor, Any, Tensor]:
        """Logits after each prompt, the cache, the mask of what was read: once what all begin with, then the rest."""
        device, prompts = self.model.device, [row.prompt for row in rows]
        shared = _common_start(prompts)
        longest = max(map(len, prompts))
        cache = None
        if len(rows) > 1 and shared >= SHARED_FROM and self._sees_all(longest + self.sampling.max_tokens):
            start_1L = torch.tensor([prompts[0][:shared]], device=device)
            _, cache = self._forward(start_1L, torch.ones_like(start_1L), None)
            cache.batch_repeat_interleave(len(rows))
        else:
            shared = 0
        padded = [[0] * (longest - len(prompt)) + prompt[shared:] for prompt in prompts]
        mask = [[1] * shared + [0] * (longest - len(prompt)) + [1] * (len(prompt) - shared) for prompt in prompts]
        mask_BL = torch.tensor(mask, device=device)
        logits_BV, cache = self._forward(torch.tensor(padded, device=device), mask_BL, cache)
        return logits_BV, cache, mask_BL

    def _sees_all(self, tokens: int) -> bool:
        """Whether each layer attends to all of so many tokens, so that padding may stand between them.

        A layer that sees a window, or carries a state along, would count the padding.
        """
        config = self.model.config.get_text_config()
        kinds, window = set(getattr(config, "layer_types", None) or ()), getattr(config, "sliding_window", None)
        stateful = getattr(self.model, "_is_stateful", False)
        return not stateful and kinds <= {"full_attention", "sliding_attention"} and (not window or tokens <= window)

    def _forward(self, ids_BL: Tensor, mask_BL: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits of the last tokens, and the cache with these ids."""
        places: dict[str, Tensor] = {}
        if self.takes_positions:
            places["position_ids"] = (mask_BL.cumsum(1) - 1).clamp(min=0)[:, -ids_BL.shape[1] :]
        output = self.model(
            input_ids=ids_BL, attention_mask=mask_BL, past_key_values=cache, use_cache=True, **places, **self.last_only
        )
        return output.logits[:, -1], output.past_key_values

    def _ended(self, row: Row) -> Completion | None:
        """The text of a row that has ended with its last token."""
        over = row.written[-1] in self.ends
        text = self.tokenizer.decode(
            row.written[:-1] if over else row.written, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        found = [place for stop in self.sampling.stop if (place := text.find(stop)) >= 0]
        if not (over or found or len(row.written) == self.sampling.max_tokens):
            return None
        return Completion(text[: min(found, default=len(text))], len(row.prompt), len(row.written))


def _common_start(prompts: Sequence[list[int]]) -> int:
    """Tokens that all begin with; one at least of each is left."""
    first, last = min(prompts), max(prompts)  # all others begin with what these two have in common
    most = min(map(len, prompts)) - 1
    return next((place for place in range(most) if first[place] != last[place]), most)
