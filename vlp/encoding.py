"""What a run's encoders deliver, as its objectives declare it: the model, its twin, a teacher, hidden words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp import distributed
from vlp.distributed import Gathering
from vlp.embeddings import Encode, Encoders, Outputs
from vlp.encoders import captioner, packing, pad_free, source, tokens
from vlp.encoders.incremental import check_blocks
from vlp.encoders.masking import Masking
from vlp.encoders.packing import TextShapes, shapes_of
from vlp.encoders.pad_free import LengthsOf
from vlp.encoders.teacher import Teacher
from vlp.encoders.two_tower import CaptionCounts, TwoTower
from vlp.encoders.vision import PatchDropout
from vlp.features import Embeddings
from vlp.momentum import Momentum, check_queue
from vlp.objectives.base import Objective, hard_texts, image_views, needs, shared_field, text_views
from vlp.types import Batch, UserError

TOKENS = frozenset({"image_tokens", "text_tokens", "masked_text", "captions"})
_OF_TWIN = "momentum."


def crops(objectives: Sequence[Objective]) -> int:
    """Views of each picture that the loader has to make; the twin sees one of its own, the last."""
    return image_views(objectives) + ("momentum" in needs(objectives))


def check(
    model: TwoTower, objectives: Sequence[Objective], global_batch_size: int, num_samples: int | None = None
) -> None:
    """Refuse what the towers or the batch cannot give to the objectives; ``model`` may lie on the device ``meta``.

    Raises:
        UserError: towers without tokens, a queue that is no multiple of the batch or longer than the data, a teacher
            that is not there, objectives that disagree.
    """
    wanted = {need.removeprefix(_OF_TWIN) for need in needs(objectives)}
    if "masked_text" in wanted:
        wanted.add("text_tokens")
    if "captions" in wanted:
        _check_captions(model)
    tokens.check(model, frozenset({"image_tokens", "text_tokens"} & wanted))
    shared_field(objectives, "momentum", "momentum")
    check_queue(shared_field(objectives, "queue", "queue_size") or 0, global_batch_size, num_samples)
    teacher = shared_field(objectives, "teacher", "teacher")
    try:
        if teacher:
            source.of_reference(teacher)
    except UserError as error:
        raise UserError(f"objectives: the teacher cannot be had: {error}") from error


def _check_captions(model: TwoTower) -> None:
    path = model.caption_path()
    if path is None:
        raise UserError("model: it tells no captions: add model.captioner, such as {layers: 2}, or choose a CoCa")
    check_blocks(path)
    _ = model.special_tokens
    if model.captioner is None:
        captioner.check_coca(model)
    else:
        tokens.check(model, frozenset({"image_tokens"}))


class Encoding:
    """The encoders of a run.

    Args:
        model: on its device, before an engine wraps it.
        num_samples: of the data, where it is known.
    """

    def __init__(
        self, model: TwoTower, objectives: Sequence[Objective], global_batch_size: int, num_samples: int | None = None
    ) -> None:
        check(model, objectives, global_batch_size, num_samples)
        self._model = model
        self._lengths_of = _text_lengths_of(model, needs(objectives))
        self._rows = global_batch_size // distributed.world_size()
        self._texts_are_asked_for = False
        self._text_gathering: Gathering | None = None
        self._image_views, self._text_views = image_views(objectives), text_views(objectives)
        self._hard_texts = hard_texts(objectives)
        wanted = needs(objectives)
        self._wanted = wanted & TOKENS
        self._in_first_pass = needs([o for o in objectives if o.couples_batch]) & TOKENS
        self.momentum: Momentum | None = None
        if "momentum" in wanted:
            of_twin = frozenset(need.removeprefix(_OF_TWIN) for need in wanted if need.startswith(_OF_TWIN))
            decay = shared_field(objectives, "momentum", "momentum")
            queue_size = shared_field(objectives, "queue", "queue_size") or 0
            self.momentum = Momentum(model, decay, queue_size, of_twin, global_batch_size)
        teacher = shared_field(objectives, "teacher", "teacher")
        self.teacher = Teacher(teacher, model.device) if teacher else None
        share = shared_field(objectives, "masked_text", "share")
        self._masking = Masking(model.tokenizer, share) if share else None
        self._smoothing = shared_field(objectives, "captions", "label_smoothing")

    def with_text_lengths(self, batch: Batch) -> Batch:
        """``batch``, on the host, with the lengths of its texts where the model can spare their padding.

        Not on the device, whose answer every step would wait for.
        """
        if self._lengths_of is None:
            return batch
        hard = batch.hard_text_KNL
        return replace(
            batch,
            text_length_VN=_by_row(self._lengths_of, batch.text_VNL),
            hard_length_KN=None if hard is None else _by_row(self._lengths_of, hard),
        )

    def encoders(
        self,
        wrapped: Callable[..., Outputs],
        batch: Batch,
        seed: int = 0,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        dropout: PatchDropout | None = None,
    ) -> Encoders:
        """Those of one step.

        Args:
            wrapped: the model as its engine has it.
            batch: all rows of this process.
            seed: says which words are hidden.
            autocast: context of the engine's precision, in which twin and teacher, which it does not wrap, encode.
            dropout: of the model's patches; twin and teacher see whole pictures.
        """

        counts = self._caption_counts(batch)

        def encode(batch: Batch, wanted: frozenset[str]) -> Outputs:
            images, texts = batch.image_VNCHW[: self._image_views], batch.text_VNL[: self._text_views]
            if self._hard_texts:
                assert batch.hard_text_KNL is not None
                texts = torch.cat([texts, batch.hard_text_KNL[: self._hard_texts]])
            plain_pass = len(batch) == self._rows
            on_text = self._send if plain_pass and self._texts_are_asked_for else None
            captions = counts if "captions" in wanted else None
            shapes = self._text_shapes(batch)
            if "masked_text" not in wanted:
                return self._apart(wrapped(images, texts, wanted, on_text, None, captions, dropout, shapes))
            assert self._masking is not None
            masked_NL, labels_NL = self._masking(batch.text_NL, seed)
            outputs = self._apart(wrapped(images, texts, wanted, on_text, masked_NL, captions, dropout, shapes))
            # A tower that pools at its first place gives no token of it.
            outputs["masked_labels"] = labels_NL[:, labels_NL.shape[1] - outputs["masked_mask"].shape[1] :]
            return outputs

        def guide(encode: Encode) -> Encode:
            def in_precision(batch: Batch) -> Outputs:
                with autocast():
                    return encode(batch)

            return in_precision

        return Encoders(
            model=lambda batch: encode(batch, self._wanted),
            first_pass=lambda batch: encode(batch, self._in_first_pass),
            momentum=guide(self.momentum.encode) if self.momentum else None,
            teacher=guide(self.teacher.encode) if self.teacher else None,
            fusion=self._model.fusion,
            queue=self.momentum.queue if self.momentum else None,
            text_gathering=self._sent,
        )

    def _text_shapes(self, batch: Batch) -> TextShapes | None:
        """Of all texts that go through the tower at once; of the same rows the same, in whichever pass."""
        if batch.text_length_VN is None:
            return None
        lengths = [batch.text_length_VN[: self._text_views]]
        if self._hard_texts:
            assert batch.hard_length_KN is not None
            lengths.append(batch.hard_length_KN[: self._hard_texts])
        return shapes_of(torch.cat(lengths).flatten())

    def _caption_counts(self, batch: Batch) -> CaptionCounts | None:
        if self._smoothing is None:
            return None
        length = self._model.special_tokens.told(batch.text_NL).sum() / len(batch)
        distributed.sum_over_ranks(length)
        return CaptionCounts(length / distributed.world_size(), self._smoothing)

    def _apart(self, outputs: Outputs) -> Outputs:
        """The texts' features, N (V + K) D, as those of captions and those of hard captions."""
        if not self._hard_texts:
            return outputs
        captions, hard = outputs["text"].split([self._text_views, self._hard_texts], dim=1)
        return {**outputs, "text": captions, "hard_text": hard}

    def _send(self, text_NVD: Tensor) -> None:
        """Begin to gather the texts while the image tower works."""
        self._text_gathering = Gathering(F.normalize(text_NVD[:, 0].float(), dim=-1))

    def _sent(self) -> Gathering | None:
        gathering, self._text_gathering = self._text_gathering, None
        return gathering

    def after_step(self, embeddings: Embeddings | None) -> None:
        """The twin follows the model, the step's batch enters the queue.

        Where the losses asked for everybody's texts, the next step sends them as soon as they are there.
        """
        if embeddings is None:
            return
        self._texts_are_asked_for = distributed.world_size() > 1 and "text_BD" in vars(embeddings)
        if self.momentum is not None and embeddings.momentum is not None:
            self.momentum.update(self._model, embeddings.momentum)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the model; empty if there is nothing."""
        return self.momentum.state() if self.momentum else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if self.momentum is not None:
            self.momentum.load_state(state)


def _text_lengths_of(model: TwoTower, wanted: frozenset[str]) -> LengthsOf | None:
    """What tells the lengths of texts, where features are all that is wanted of them; makes the tower ready for it."""
    if "text_tokens" in wanted or ("captions" in wanted and model.tells_by_its_text_tower):
        return None
    lengths_of = pad_free.lengths_reader(model.clip)
    if lengths_of is not None:
        packing.prepare(getattr(model.clip, "text", model.clip))
    return lengths_of


def _by_row(lengths_of: LengthsOf, text_VNL: Tensor) -> Tensor:
    return lengths_of(text_VNL.flatten(0, 1)).unflatten(0, text_VNL.shape[:2])
