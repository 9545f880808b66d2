"""Distillation: what it is at the teacher's own similarities, and that it is open_clip's."""

from __future__ import annotations

import math

import pytest
import torch
from open_clip.loss import ClipLoss, DistillClipLoss
from torch import Tensor
from torch.nn.functional import normalize

from vlp.features import Embeddings, Features
from vlp.objectives import base
from vlp.similarity import rows
from vlp.types import Loss, UserError

B = 12


def normal(seed: int, width: int = 8, number: int = B) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(number, width, generator=random, dtype=torch.float64), dim=-1)


def teacher_of(image_BD: Tensor, text_BD: Tensor, scale: float | Tensor) -> Features:
    zero = torch.zeros((), dtype=image_BD.dtype)
    return Features(image_BD[None], text_BD[None], torch.as_tensor(scale, dtype=image_BD.dtype), zero)


def distill(image_BD: Tensor, text_BD: Tensor, scale: Tensor, teacher: Features, **options: object) -> Loss:
    embedded = Embeddings.of(image_BD, text_BD, scale, teacher=teacher)
    return base.parse({"name": "distill", "teacher": "somewhere", **options}).loss(embedded)


def student() -> tuple[Tensor, Tensor, Tensor]:
    scale = torch.tensor(9.0, dtype=torch.float64)
    return normal(1).requires_grad_(), normal(2).requires_grad_(), scale.requires_grad_()


def test_it_is_the_distillation_of_open_clip():
    """Whose sum of both losses is ours of `infonce` and `distill` together."""
    image, text, scale = student()
    teacher = normal(3, 5), normal(4, 5), torch.tensor(6.0, dtype=torch.float64)
    ours = distill(image, text, scale, teacher_of(*teacher))
    their_loss = DistillClipLoss(local_loss=True, gather_with_grad=True)
    contrastive, theirs = their_loss(normalize(image, dim=-1), normalize(text, dim=-1), scale, *teacher)
    torch.testing.assert_close(ours.total, theirs)
    torch.testing.assert_close(contrastive, ClipLoss()(image, text, scale))
    leaves = [image, text, scale]
    mine, others = (torch.autograd.grad(total, leaves) for total in (ours.total, theirs))
    torch.testing.assert_close(mine, others)


def test_a_student_like_its_teacher_has_the_teachers_entropy_and_no_gradient():
    image, text, scale = student()
    found = distill(image, text, scale, teacher_of(image.detach(), text.detach(), scale.detach()))
    torch.testing.assert_close(found.total, found.parts["teacher_entropy"])
    logits = (scale * image @ text.T).detach()
    by_hand = sum(-(p.softmax(1) * p.log_softmax(1)).sum(1).mean() for p in (logits, logits.T)) / 2
    torch.testing.assert_close(found.parts["teacher_entropy"], by_hand)
    for gradient in torch.autograd.grad(found.total, [image, text, scale]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_no_student_is_below_the_teachers_entropy(seed):
    teacher = teacher_of(normal(seed, 5), normal(seed + 50, 5), 10.0)
    found = distill(normal(seed + 100), normal(seed + 150), torch.tensor(10.0), teacher)
    assert found.total > found.parts["teacher_entropy"]
    assert 0 < found.parts["teacher_entropy"] < math.log(B)


def test_a_teacher_without_a_doubt_is_infonce():
    image, text, scale = student()
    sure = torch.eye(B, dtype=torch.float64)
    found = distill(image, text, scale, teacher_of(sure, sure, 1e4))
    torch.testing.assert_close(found.total, ClipLoss()(image, text, scale))
    assert found.parts["teacher_entropy"] == 0


def test_a_teacher_without_an_opinion_asks_for_equal_similarities():
    """By hand: ln B where the student has none either; any other student is worse."""
    same = torch.ones(B, 3, dtype=torch.float64)
    indifferent = teacher_of(normalize(same, dim=-1), normalize(same, dim=-1), 100.0)
    equal = distill(same, same, torch.tensor(5.0), indifferent)
    assert equal.total == pytest.approx(math.log(B))
    image, text, scale = student()
    assert distill(image, text, scale, indifferent).total > equal.total


def test_the_scale_of_the_teacher_can_be_set():
    image, text, scale = student()
    features = normal(3, 5), normal(4, 5)
    own, set_here = (
        distill(image, text, scale, teacher_of(*features, 20.0)),
        distill(image, text, scale, teacher_of(*features, 3.0), teacher_scale=20.0),
    )
    torch.testing.assert_close(own.total, set_here.total)


def test_strips_are_the_whole(monkeypatch):
    """Values, and gradients that backward computes strip by strip."""
    image, text, scale = student()
    teacher = teacher_of(normal(3, 5), normal(4, 5), 6.0)

    def found(most_logits: int) -> tuple[Loss, tuple[Tensor, ...]]:
        monkeypatch.setattr(rows.by_rows, "__defaults__", (most_logits,))
        loss = distill(image, text, scale, teacher)
        return loss, torch.autograd.grad(loss.total, [image, text, scale])

    whole, gradients = found(B * B)
    for most in (B, 5 * B):
        strips, of_strips = found(most)
        torch.testing.assert_close(strips.total, whole.total)
        torch.testing.assert_close(strips.parts, whole.parts)
        torch.testing.assert_close(of_strips, gradients)


def test_memory_is_that_of_a_strip(monkeypatch):
    """What forward keeps for backward does not grow with N x B."""

    def kept(number: int) -> int:
        monkeypatch.setattr(rows.by_rows, "__defaults__", (1 << 12,))
        image, text = (normal(seed, 4, number).requires_grad_() for seed in (1, 2))
        teacher = teacher_of(normal(3, 5, number), normal(4, 5, number), 6.0)
        total, seen = 0, set()

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            distill(image, text, torch.tensor(9.0), teacher)
        return total

    assert kept(512) < 3 * kept(256)
    assert kept(512) < 512 * 512 / 4


def test_the_teacher_has_no_gradient():
    image, text, scale = student()
    features = normal(3, 5).requires_grad_()
    found = distill(image, text, scale, teacher_of(features, normal(4, 5), 6.0))
    assert torch.autograd.grad(found.total, features, allow_unused=True) == (None,)


@pytest.mark.parametrize(
    ("options", "word"), [({}, "teacher"), ({"teacher": "x", "teacher_scale": 0}, "teacher_scale")]
)
def test_options_are_checked(options: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        base.parse({"name": "distill", **options})


def test_two_teachers_are_refused() -> None:
    pair = [base.parse({"name": "distill", "teacher": place}) for place in ("runs/a", "runs/b")]
    with pytest.raises(UserError, match=r"runs/a.*runs/b"):
        base.shared_field(pair, "teacher", "teacher")
