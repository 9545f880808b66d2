"""Captions of pictures, written by a model that tells them: greedy, beam search and nucleus sampling.

The loops are ours: transformers' ``generate`` can drive `IncrementalDecoder` (tried with 4.56 and 5.23), but through
private methods, it keeps pictures whose text has ended in the batch until the last text ends, and it draws from one
random state, so that a text would depend on the pictures beside it. What changes the probabilities of the next id
(top-p, penalties, bans) are transformers' logits processors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from vlp import draws
from vlp.data.benchmark_sets import StoredFile, decoded
from vlp.encoders.captioner import CaptionPath
from vlp.encoders.evaluating import evaluating
from vlp.encoders.incremental import IncrementalDecoder, check_blocks
from vlp.encoders.special_tokens import SpecialTokens
from vlp.encoders.two_tower import TwoTower
from vlp.generation_options import GenerationOptions
from vlp.types import UserError

_LIVE_SHARE = 0.75  # pictures whose text has ended leave the batch when no more than this share of it goes on


def caption_images(
    model: TwoTower, images: Sequence[StoredFile], batch_size: int, options: GenerationOptions
) -> list[str]:
    """A caption of each picture. Equal files are decoded and captioned once.

    Raises:
        UserError: as `generate`, or a picture cannot be decoded.
    """
    distinct = list(dict.fromkeys(images))
    captions = [
        caption
        for image_NCHW in decoded(distinct, model.eval_transform, batch_size)
        for caption in captions_of(model, image_NCHW, options)
    ]
    caption_of = dict(zip(distinct, captions, strict=True))
    return [caption_of[image] for image in images]


def captions_of(model: TwoTower, image_NCHW: Tensor, options: GenerationOptions) -> list[str]:
    """A caption of each of the uint8 pictures; as `generate`."""
    text_NL = generate(model, image_NCHW, options).cpu()
    lengths = model.special_tokens.lengths(text_NL).tolist()
    rows = zip(text_NL.tolist(), lengths, strict=True)
    return [_string(model.tokenizer, text[1 : length - 1]) for text, length in rows]


def generate(model: TwoTower, image_NCHW: Tensor, options: GenerationOptions) -> Tensor:
    """Ids of a caption of each of the uint8 pictures, (N, L): start, caption, end, and padding behind it.

    The model writes in evaluation mode and has its modes back afterwards. A picture's caption does not depend on those
    beside it (but for rounding), also where it is drawn: that is a function of the seed and the pixels.

    Raises:
        UserError: the model tells no captions, its logits are not finite, or the prompt leaves no place for one.
    """
    path = check_captioner(model)
    with evaluating(model):
        image_NCHW = image_NCHW.to(model.device)
        memory_NQW = model.caption_memory(image_NCHW)
        writer = _Writer(path, memory_NQW, _beginning(model, options), model.special_tokens, options)
        if options.num_beams > 1:
            return writer.beam_search()
        keys_N = None if options.top_p is None else draws.identities(image_NCHW.flatten(1))
        return writer.one_by_one(keys_N)


def check(model: TwoTower, options: GenerationOptions) -> None:
    """Refuse, before anything is written, what `generate` would refuse of any picture.

    Raises:
        UserError: as `generate`, but for logits that are not finite.
    """
    path = check_captioner(model)
    check_blocks(path)
    _limit(path, _beginning(model, options), options)


def check_captioner(model: TwoTower) -> CaptionPath:
    """How the model tells captions.

    Raises:
        UserError: it tells none.
    """
    path = model.caption_path()
    if path is None:
        raise UserError(
            "the model tells no captions: take a CoCa, such as coca_ViT-B-32, or train one with `model.captioner` and "
            "the objective `captioning`"
        )
    return path


class _Writer:
    """Texts for the pictures of a batch, which all begin with the same ids (P of them)."""

    def __init__(
        self,
        path: CaptionPath,
        memory_NQW: Tensor,
        begin_P: list[int],
        special: SpecialTokens,
        options: GenerationOptions,
    ) -> None:
        self.path, self.memory_NQW, self.begin_P = path, memory_NQW, begin_P
        self.special, self.options = special, options
        self.limit = _limit(path, begin_P, options)
        self.processors = _processors(options, special, memory_NQW.device)

    def one_by_one(self, keys_N: Tensor | None) -> Tensor:
        """The likeliest id each time, or one that is drawn, by the picture's key."""
        decoder = IncrementalDecoder(self.path, self.memory_NQW, self.limit - 1)
        text_NL, states_NW = self._start(decoder)
        rows_N = torch.arange(len(text_NL), device=text_NL.device)
        live_N = torch.ones_like(rows_N, dtype=torch.bool)
        for place in range(len(self.begin_P), self.limit):
            scores_NV = self._scores(text_NL[rows_N, :place], states_NW)
            ids_N = scores_NV.argmax(1) if keys_N is None else self._drawn(scores_NV, keys_N[rows_N], place)
            text_NL[rows_N, place] = torch.where(live_N, ids_N, self.special.padding)
            live_N = live_N & (ids_N != self.special.end)
            going = int(live_N.sum())
            if going == 0:
                break
            if going <= _LIVE_SHARE * len(live_N):
                kept_n = live_N.nonzero()[:, 0]
                decoder.keep(kept_n)
                rows_N, ids_N, live_N = rows_N[kept_n], ids_N[kept_n], live_N[kept_n]
            states_NW = decoder.step(ids_N[:, None])[:, 0]
        return text_NL

    def beam_search(self) -> Tensor:
        """The likeliest of the texts that end among the K best, by log-likelihood / length^penalty.

        A picture is done when K texts have ended and none that goes on is better than they are, at its present length.
        """
        beams, penalty = self.options.num_beams, self.options.length_penalty
        penalty = 1.0 if penalty is None else penalty
        decoder = IncrementalDecoder(self.path, self.memory_NQW, self.limit - 1, beams)
        best_NL, states_NW = self._start(decoder)
        best_NL[:, len(self.begin_P)] = self.special.end
        text_NKL = best_NL[:, None].repeat(1, beams, 1)
        states_NKW = states_NW[:, None].expand(-1, beams, -1)
        rows_N = torch.arange(len(best_NL), device=best_NL.device)
        live_N = torch.ones_like(rows_N, dtype=torch.bool)
        total_NK = torch.full(text_NKL.shape[:2], -torch.inf, device=best_NL.device)
        ended_NK = total_NK.clone()  # scores of the K best texts that have ended
        total_NK[:, 0] = 0  # as yet they are all the same text
        for place in range(len(self.begin_P), self.limit):
            scores_MV = self._scores(text_NKL[..., :place].flatten(0, 1), states_NKW.flatten(0, 1))
            scores_NKV = scores_MV.unflatten(0, (-1, beams)) + total_NK[..., None]
            top_NC, flat_NC = scores_NKV.flatten(1).topk(2 * beams)  # K of them at the most are ends
            parent_NC, ids_NC = flat_NC // scores_MV.shape[1], flat_NC % scores_MV.shape[1]
            end_NC = ids_NC == self.special.end
            whole_NC = (top_NC / (place + 1) ** penalty).masked_fill(~(end_NC & live_N[:, None]), -torch.inf)
            whole_NC[:, beams:] = -torch.inf

            found_N, which_N = whole_NC.max(1, keepdim=True)
            better_N = (found_N > ended_NK[:, :1])[:, 0]
            parents_N = parent_NC.gather(1, which_N)[better_N, 0]
            best_NL[rows_N[better_N], :place] = text_NKL[better_N, parents_N, :place]
            best_NL[rows_N[better_N], place] = self.special.end
            ended_NK = torch.cat([ended_NK, whole_NC], 1).topk(beams)[0]
            live_N = live_N & (ended_NK[:, -1] < top_NC[:, 0] / (place + 1) ** penalty)
            going = int(live_N.sum())
            if going == 0 or place + 1 == self.limit:
                break

            total_NK, order_NK = top_NC.masked_fill(end_NC, -torch.inf).topk(beams)
            parent_NK, ids_NK = parent_NC.gather(1, order_NK), ids_NC.gather(1, order_NK)
            text_NKL = text_NKL.gather(1, parent_NK[..., None].expand_as(text_NKL))
            text_NKL[..., place] = ids_NK
            if going <= _LIVE_SHARE * len(live_N):
                kept_n = live_N.nonzero()[:, 0]
                decoder.keep(kept_n)
                rows_N, live_N, total_NK, ended_NK = rows_N[kept_n], live_N[kept_n], total_NK[kept_n], ended_NK[kept_n]
                text_NKL, ids_NK, parent_NK = text_NKL[kept_n], ids_NK[kept_n], parent_NK[kept_n]
            states_NKW = decoder.step(ids_NK, parent_NK)
        return best_NL

    def _start(self, decoder: IncrementalDecoder) -> tuple[Tensor, Tensor]:
        """The beginning of each text with padding behind it, NL, and the state of its last id, NW."""
        pictures, device = len(self.memory_NQW), self.memory_NQW.device
        text_NL = torch.full((pictures, self.limit), self.special.padding, device=device)
        text_NL[:, : len(self.begin_P)] = torch.tensor(self.begin_P, device=device)
        states_NW = decoder.start(text_NL[:, : len(self.begin_P)])[:, -1]
        if not bool(states_NW.isfinite().all()):
            raise UserError("the model's logits are not finite: its weights have diverged, take an earlier checkpoint")
        return text_NL, states_NW

    def _scores(self, text_ML: Tensor, states_MW: Tensor) -> Tensor:
        """Log-probabilities MV of the ids that may follow; of the end alone where the text must end."""
        scores_MV = (states_MW @ self.path.head_WV).float().log_softmax(-1)
        if text_ML.shape[1] + 1 == self.limit:
            only_MV = torch.full_like(scores_MV, -torch.inf)
            only_MV[:, self.special.end] = scores_MV[:, self.special.end]
            return only_MV
        return self.processors(text_ML[:, 1:], scores_MV)  # a start that is the end's id, too, is no repetition

    def _drawn(self, scores_NV: Tensor, keys_N: Tensor, place: int) -> Tensor:
        """Ids by where a number between 0 and 1 falls among the sums of their probabilities."""
        sums_NV = scores_NV.double().softmax(1).cumsum(1)
        drawn_N1 = draws.uniforms(self.options.seed or 0, keys_N, place)[:, None] * sums_NV[:, -1:]
        return torch.searchsorted(sums_NV, drawn_N1, right=True)[:, 0]


def _limit(path: CaptionPath, begin_P: list[int], options: GenerationOptions) -> int:
    """Ids that a text has at the most.

    Raises:
        UserError: its beginning leaves no place for a caption, or it would have to be longer.
    """
    limit = min(options.max_length, path.context_length)
    if len(begin_P) > limit - 2:
        raise UserError(
            f"prompt '{options.prompt}' has {len(begin_P)} ids with the start, which leaves no place for a caption in "
            f"{limit}: shorten it, or raise max_length as far as the model's context"
        )
    if options.min_length > limit:
        raise UserError(f"min_length is {options.min_length}, but the model's texts have at most {limit} ids")
    return limit


def _processors(options: GenerationOptions, special: SpecialTokens, device: torch.device) -> LogitsProcessorList:
    """What changes the probabilities of the next id, in transformers' order."""
    found = LogitsProcessorList()
    if options.repetition_penalty > 1:
        found.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.no_repeat_ngram is not None:
        found.append(NoRepeatNGramLogitsProcessor(options.no_repeat_ngram))
    found.append(MinLengthLogitsProcessor(options.min_length - 2, special.end, device=str(device)))  # start and end
    found.append(SuppressTokensLogitsProcessor(sorted({special.start, special.padding} - {special.end}), str(device)))
    if options.temperature is not None:
        found.append(TemperatureLogitsWarper(options.temperature))
    if options.top_p is not None and options.top_p < 1:
        found.append(TopPLogitsWarper(options.top_p))
    return found


def _beginning(model: TwoTower, options: GenerationOptions) -> list[int]:
    """Ids of the start and the prompt."""
    text_1L = model.tokenizer([options.prompt])
    return text_1L[0, : int(model.special_tokens.lengths(text_1L)) - 1].tolist()


def _string(tokenizer: object, ids: list[int]) -> str:
    """The caption that ids say, without the spaces that open_clip's tokenizers put before marks."""
    if isinstance(tokenizer, SimpleTokenizer):
        text = re.sub(r"(?<=\d) (?=\d)", "", tokenizer.decode(ids))  # each digit is an id of its own
    else:
        text = tokenizer.tokenizer.decode(ids, skip_special_tokens=True)  # type: ignore[attr-defined]
    text = re.sub(r" +([.,:;!?%)\]}])", r"\1", " ".join(text.split()))
    return re.sub(r" '(s|t|re|ve|m|ll|d)\b", r"'\1", text)
