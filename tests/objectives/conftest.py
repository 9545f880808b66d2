"""Inputs for any objective, made from what it declares: nothing here knows one of them by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.encoders.fusion import FusionOptions, FusionTower
from vlp.features import Captions, Embeddings, Features, Masked, Queue
from vlp.objectives import base

Inputs = dict[str, Tensor]

ROWS, WIDTH, TEACHER_WIDTH, PATCHES, WORDS, QUEUED = 6, 8, 5, 4, 5, 7


def views(objective: base.Objective, kind: str) -> int:
    return max([1, *(int(need.split(":")[1]) for need in objective.needs if need.startswith(f"{kind}_views:"))])


def hard_texts(objective: base.Objective) -> int:
    return max([0, *(int(need.split(":")[1]) for need in objective.needs if need.startswith("hard_texts:"))])


class Maker:
    """Makes inputs and `Embeddings` of them.

    Inputs are plain tensors by name, rows first but for scalars, the queue and what ends in ``_views``; features are
    not normalised, so that they may move freely in finite differences.
    """

    def inputs(
        self, objective: base.Objective, rows: int = ROWS, dtype: torch.dtype = torch.float64, everything: bool = False
    ) -> Inputs:
        """What ``objective`` needs, or ``everything`` that any could."""
        random = torch.Generator().manual_seed(11)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

        needs = objective.needs
        made = {
            "image": normal(rows, views(objective, "image"), WIDTH),
            "text": normal(rows, views(objective, "text"), WIDTH),
            "logit_scale": torch.tensor(5.0, dtype=dtype),
            "logit_bias": torch.tensor(-1.5, dtype=dtype),
        }
        # Words fill a text from its start; the last row has one word only.
        lengths_N = torch.arange(rows).flip(0) % WORDS + 1
        mask_NL = torch.arange(WORDS) < lengths_N[:, None]
        for owner, wanted in (("", "image"), ("momentum.", "momentum"), ("teacher.", "teacher")):
            if owner and (everything or wanted in needs):
                width = TEACHER_WIDTH if wanted == "teacher" else WIDTH
                made |= {f"{owner}image": normal(rows, 1, width), f"{owner}text": normal(rows, 1, width)}
                made[f"{owner}logit_scale"] = torch.tensor(7.0, dtype=dtype)
            if wanted != "teacher":
                if everything or f"{owner}image_tokens" in needs:
                    made[f"{owner}image_tokens"] = normal(rows, PATCHES, WIDTH)
                if everything or f"{owner}text_tokens" in needs:
                    made |= {f"{owner}text_tokens": normal(rows, WORDS, WIDTH), f"{owner}text_mask": mask_NL}
        if everything or "queue" in needs:
            made |= {"queue.image": normal(QUEUED, WIDTH), "queue.text": normal(QUEUED, WIDTH)}
        if everything or "masked_text" in needs:
            hidden_NL = mask_NL & (torch.rand(rows, WORDS, generator=random) < 0.5)
            hidden_NL[:, 0] = True
            ids_NL = torch.randint(0, 40, (rows, WORDS), generator=random)
            made["masked.tokens"] = normal(rows, WORDS, WIDTH)
            made |= {"masked.mask": mask_NL, "masked.labels": torch.where(hidden_NL, ids_NL, -100)}
        if everything or "captions" in needs:
            made |= {"told.loss": normal(rows), "told.nll": normal(rows)}
        # Row 1 says what row 4 says; row 2 shows what row 5 shows.
        if everything or "caption_ids" in needs:
            made["captions"] = (torch.arange(rows * made["text"].shape[1]) * 977 + 5).view(-1, rows).T.contiguous()
            made["captions"][4:5] = made["captions"][1:2]
        if everything or "picture_ids" in needs:
            made["pictures"] = torch.arange(rows) * 733 + 7
            made["pictures"][5:6] = made["pictures"][2:3]
        # Row 4 has fewer hard captions than the others; that of row 0 is its own caption, that of row 3 is row 2's.
        if everything or hard_texts(objective):
            number = hard_texts(objective) or 1
            made |= {"hard_text": normal(rows, number, WIDTH), "hard_mask": torch.ones(rows, number, dtype=torch.bool)}
            made["hard_mask"][4:5, -1] = False
            made["hard_captions"] = torch.arange(rows * number).view(rows, number) * 31 + 1
            made["hard_captions"][:1, 0] = made["captions"][:1, 0]
            made["hard_captions"][3:4, 0] = made["captions"][2:3, 0]
        return made

    def fusion(self, objective: base.Objective, dtype: torch.dtype = torch.float64) -> nn.Module | None:
        """A tiny tower with random weights, where ``objective`` needs one."""
        if not objective.needs & {"fusion", "masked_text"}:
            return None
        torch.manual_seed(6)
        return FusionTower(FusionOptions(layers=1, width=8, heads=2), WIDTH, vocab_size=41).to(dtype)

    def embeddings(
        self,
        inputs: Inputs,
        fusion: nn.Module | None = None,
        seed: int = 3,
        kind: type[Embeddings] = Embeddings,
    ) -> Embeddings:
        """As `vlp.embeddings.embed` makes them, but in the precision of the inputs."""
        queue = masked = told = None
        if "queue.image" in inputs:
            queue = Queue(F.normalize(inputs["queue.image"], dim=-1), F.normalize(inputs["queue.text"], dim=-1))
        if "masked.tokens" in inputs:
            masked = Masked(inputs["masked.tokens"], inputs["masked.mask"], inputs["masked.labels"])
        if "told.loss" in inputs:
            told = Captions(inputs["told.loss"].mean(), inputs["told.nll"].mean())
        return kind(
            **_features(inputs, ""),
            momentum=Features(**_features(inputs, "momentum.")) if "momentum.image" in inputs else None,
            teacher=Features(**_features(inputs, "teacher.")) if "teacher.image" in inputs else None,
            queue=queue,
            masked=masked,
            captions=told,
            fusion=fusion,
            picture_N=inputs.get("pictures"),
            caption_VN=inputs["captions"].T if "captions" in inputs else None,
            hard_text_KND=F.normalize(inputs["hard_text"], dim=-1).transpose(0, 1) if "hard_text" in inputs else None,
            hard_mask_KN=inputs["hard_mask"].T if "hard_mask" in inputs else None,
            hard_caption_KN=inputs["hard_captions"].T if "hard_captions" in inputs else None,
            seed=seed,
        )


def _features(inputs: Inputs, owner: str) -> dict[str, Any]:
    def views_first(name: str) -> Tensor:
        return F.normalize(inputs[owner + name], dim=-1).transpose(0, 1)

    return {
        "image_VND": views_first("image"),
        "text_VND": views_first("text"),
        "logit_scale": inputs[f"{owner}logit_scale"],
        "logit_bias": inputs.get(f"{owner}logit_bias", torch.zeros((), dtype=inputs[f"{owner}image"].dtype)),
        "image_tokens_NPD": inputs.get(f"{owner}image_tokens"),
        "text_tokens_NLD": inputs.get(f"{owner}text_tokens"),
        "text_mask_NL": inputs.get(f"{owner}text_mask"),
    }


@pytest.fixture(scope="session")
def make() -> Maker:
    return Maker()
