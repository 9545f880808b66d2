"""Captioning: what a model says of pictures, measured against true captions (CLIP_benchmark's captioning, and more).

Asked for by name, ``captioning:PATH``, as a set of retrieval has the same layout; PATH may also be a file of captions
as COCO's or Karpathy's (`vlp.data.caption_sets`). Where a ``slots.json`` lies beside the set, captions are also read
for what they say (`vlp.evaluation.slots`).

Chance is what is had without a look: slots of one who always says the most frequent values, ids of one who always tells
the most frequent, and for everything else the true captions of other pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor

from vlp.data.caption_sets import read_caption_set
from vlp.encoders import source
from vlp.encoders.openclip import load
from vlp.encoders.two_tower import TwoTower
from vlp.evaluation import caption_metrics, intervals, slots
from vlp.evaluation.caption_loss import TrueCaptions, of_true_captions, others
from vlp.evaluation.caption_metrics import CaptionScores, clip_scores, ref_clip_scores, score_captions
from vlp.evaluation.embed import Encoder, embed_images, embed_texts
from vlp.evaluation.tasks import base
from vlp.evaluation.team import ALONE, Team
from vlp.generation import caption_images, check
from vlp.generation_options import GenerationOptions

LABELS = {f"Bleu_{n}": f"BLEU-{n}" for n in (4, 3, 2, 1)} | {"ROUGE_L": "ROUGE-L"}
FIGURES = {
    "caption_loss": "mean -log p of an id of the true captions, in nats",
    "caption_loss_shuffled": "the same with another's picture: no higher if the model does not look",
    "words": "words a caption",
    "distinct": "share of different captions, 0 to 1",
    "repeats": "share of captions in which three words in a row come twice, 0 to 1",
}
ORDER = ("CIDEr", "SPICE", "METEOR", "ROUGE_L", "Bleu_4", "Bleu_3", "Bleu_2", "Bleu_1")


class CaptioningOptions(GenerationOptions, frozen=True, extra="forbid"):
    """How captions of evaluation sets are written, and who judges them."""

    scorer: str | None = Field(
        None, description="MODEL whose CLIPScore the captions get; the captioner's own where none is named"
    )


@dataclass(frozen=True)
class Captioned(base.SetEmbeddings):
    """What a model said of the pictures and expects of the true captions, and how its judge sees them.

    ``text_ND`` are the true captions, ``caption_ND`` those of the model, both behind `caption_metrics.PROMPT`.
    """

    captions: list[str]
    caption_ND: Tensor
    true: TrueCaptions


class Task(base.Task):
    kind = "captioning"
    section = "captioning"
    layout = ""  # it is asked for by name

    def __init__(self, path: Path, options: CaptioningOptions | None = None) -> None:
        super().__init__(path)
        # The same directory may be evaluated as retrieval, too.
        self.name = f"{path.stem if path.is_file() else self.name}_captioning"
        self.options = options or CaptioningOptions()
        found = read_caption_set(path)
        self.images = found.images
        self.texts = found.texts
        self.image_of_text = found.image_of_text
        self.references: list[list[str]] = [[] for _ in found.images]
        for text, image in zip(found.texts, found.image_of_text, strict=True):
            self.references[image].append(text)
        file = path / slots.FILE
        self.slots = slots.read_slots(file, len(found.images)) if file.exists() else None
        if self.options.scorer is not None:
            source.of_reference(self.options.scorer)  # one that is not there is told now

    @staticmethod
    def detects(directory: Path) -> bool:
        return False

    def check(self, encoder: Encoder) -> None:
        check(cast(TwoTower, encoder), self.options)

    def run(self, encoder: Encoder, batch_size: int, team: Team = ALONE) -> base.Scores:
        """By the first process alone: METEOR's Java takes gigabytes each."""
        return team.once(lambda: self.score(self.embed(encoder, batch_size)))

    def embed(self, encoder: Encoder, batch_size: int, team: Team = ALONE) -> Captioned:
        model = cast(TwoTower, encoder)
        scorer = load(self.options.scorer, model.device) if self.options.scorer is not None else model
        captions = caption_images(model, self.images, batch_size, self.options)
        return Captioned(
            embed_images(scorer, self.images, batch_size),
            embed_texts(scorer, [caption_metrics.PROMPT + text for text in self.texts], batch_size),
            float(scorer.logit_scale.detach().exp()),
            captions,
            embed_texts(scorer, [caption_metrics.PROMPT + text for text in captions], batch_size),
            of_true_captions(model, self.images, self.texts, self.image_of_text, batch_size),
        )

    def score(self, embeddings: base.SetEmbeddings) -> base.Scores:
        assert isinstance(embeddings, Captioned)
        captions, true = embeddings.captions, embeddings.true
        words = score_captions(captions, self.references)
        parts = [self._of_slots(captions), self._of_words(words), self._of_judge(embeddings)]
        next_id = _Metric("next id of true captions", true.token_accuracy, true.most_frequent)
        parts.append(_Part({"token_acc": next_id}, {}))
        metrics = {name: metric for part in parts for name, metric in part.metrics.items()}
        if len(self.images) == 1:  # there are no others
            metrics = {name: replace(metric, chance=math.nan) for name, metric in metrics.items()}
        figures = {
            "caption_loss": true.loss,
            "caption_loss_shuffled": true.loss_shuffled,
            **caption_metrics.repetition(captions),
        }
        log = {name: metric.score for name, metric in metrics.items()} | figures
        return base.Scores(
            metrics={name: metric.score for name, metric in metrics.items()},
            chance={name: metric.chance for name, metric in metrics.items()},
            tie_rate=math.nan,
            num_images=len(self.images),
            num_texts=len(self.texts),
            log={f"{self.name}/{name}": value for name, value in log.items() if not math.isnan(value)},
            labels={name: metric.label for name, metric in metrics.items()},
            intervals={name: metric.interval for name, metric in metrics.items() if not math.isnan(metric.interval[0])},
            figures=figures,
            notes=_notes(words),
            records=self._records(captions, parts),
        )

    def _of_slots(self, captions: Sequence[str]) -> _Part:
        """What the captions say of the things in the pictures."""
        if self.slots is None:
            return _Part({}, {})
        truths = self.slots.pictures
        scores = [
            slots.score(slots.read(text, self.slots), truth, self.slots)
            for text, truth in zip(captions, truths, strict=True)
        ]
        without_looking = slots.baseline(self.slots)
        chance = slots.accuracies([slots.score(without_looking, truth, self.slots) for truth in truths])
        found = slots.accuracies(scores)
        labels = {"mean": f"slots right, mean of {len(found) - 2}", "all": "captions with all slots right"}
        metrics = {
            "slot_acc" if name == "mean" else f"slot_acc_{name}": _Metric(
                labels.get(name, f"{name} right"), accuracy.share, chance[name].share, accuracy.interval
            )
            for name, accuracy in found.items()
        }
        parses = [self.slots.is_sentence(text) for text in captions]
        by_chance = [self.slots.is_sentence(text) for text in self._of_others]
        metrics["parses"] = _mean("sentences of the grammar", parses, sum(by_chance) / len(by_chance))
        return _Part(metrics, {"slots": [one.share for one in scores], "wrong": [one.wrong for one in scores]})

    def _of_words(self, words: CaptionScores) -> _Part:
        """How far the captions have the words of the true ones."""
        metrics = {}
        for name in ORDER:
            if name in words.of_set:
                chance = self._words_of_others.of_set.get(name, math.nan)
                mean = intervals.of_mean(words.of_picture[name], range(len(self.images)))
                is_mean = name in caption_metrics.MEANS and len(set(words.of_picture[name])) > 1
                interval = mean if is_mean else (math.nan, math.nan)
                metrics[name] = _Metric(LABELS.get(name, name), words.of_set[name], chance, interval)
        return _Part(metrics, {name: words.of_picture[name] for name in ("CIDEr",) if name in words.of_picture})

    def _of_judge(self, embeddings: Captioned) -> _Part:
        """How well the captions fit the pictures for an image-text model."""
        image_of_text = torch.tensor(self.image_of_text)
        first_of_others = [self.image_of_text.index(other) for other in others(len(self.images))]
        found = []
        for caption_ND in (embeddings.caption_ND, embeddings.text_ND[first_of_others]):
            clip_N = clip_scores(embeddings.image_ND, caption_ND)
            ref_N = ref_clip_scores(clip_N, caption_ND, embeddings.text_ND, image_of_text)
            found.append((clip_N.tolist(), ref_N.tolist()))
        judge = "own" if self.options.scorer is None else Path(self.options.scorer).name
        metrics = {
            name: _mean(f"{name} ({judge})", values, sum(by_chance) / len(by_chance))
            for name, values, by_chance in zip(("CLIPScore", "RefCLIPScore"), *found, strict=True)
        }
        return _Part(metrics, {"CLIPScore": found[0][0], "RefCLIPScore": found[0][1]})

    @cached_property
    def _of_others(self) -> list[str]:
        """For each picture a true caption of another one."""
        return [self.references[other][0] for other in others(len(self.images))]

    @cached_property
    def _words_of_others(self) -> CaptionScores:
        return score_captions(self._of_others, self.references)

    def _records(self, captions: Sequence[str], parts: Sequence[_Part]) -> list[dict[str, Any]]:
        of_picture = {name: values for part in parts for name, values in part.of_picture.items()}
        return [
            {
                "image": image.name,
                "caption": caption,
                "true": true,
                **{name: values[row] for name, values in of_picture.items()},
            }
            for row, (image, caption, true) in enumerate(zip(self.images, captions, self.references, strict=True))
        ]


@dataclass(frozen=True)
class _Metric:
    label: str
    score: float
    chance: float
    interval: intervals.Interval = (math.nan, math.nan)


@dataclass(frozen=True)
class _Part:
    """Metrics that belong together, and what a line about a picture has of them."""

    metrics: dict[str, _Metric]
    of_picture: Mapping[str, Sequence[Any]]


def _mean(label: str, values: Sequence[float], chance: float) -> _Metric:
    return _Metric(label, sum(values) / len(values), chance, intervals.of_mean(values, range(len(values))))


def _notes(words: CaptionScores) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for name, why in words.left_out.items():
        reasons.setdefault(why, []).append(LABELS.get(name, name))
    notes = [f"left out: {', '.join(names)}: {why}" for why, names in reasons.items()]
    return notes + ([f"words by {words.tokenizer}"] if words.tokenizer else [])
