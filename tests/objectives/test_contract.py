"""What every objective keeps by existing: the files of vlp/objectives are found, and none is registered here.

Each is tried as it is by default, with every choice of its options, with the ``examples`` that a field may give, and
with these together (tests/conftest.py). A field whose interesting values cannot be guessed gives some:
``Field(0.0, examples=[0.1])``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vlp import embeddings, resolve
from vlp.durations import Span
from vlp.features import Embeddings, Queue
from vlp.objectives import base
from vlp.types import Batch, Loss

ROWS = 6
OBJECTIVES = resolve.names("vlp.objectives")
PARTS_OF_THE_TRAINER = {"loss", "lr", "grad_norm", "logit_scale", "batch_time", "data_time", "skipped_samples"}
NEEDS = {
    *("image", "text", "image_tokens", "text_tokens", "momentum", "momentum.image_tokens", "momentum.text_tokens"),
    *("queue", "teacher", "picture_ids", "caption_ids", "logit_bias", "fusion", "masked_text", "hard_texts"),
    "captions",
}
FIELD_OF_NEED = {"momentum": "momentum", "queue": "queue_size", "teacher": "teacher", "captions": "label_smoothing"}
NEED_OF_INPUT = {
    "image": "image",
    "text": "text",
    "image_tokens": "image_tokens",
    "text_tokens": "text_tokens",
    "text_mask": "text_tokens",
    "logit_bias": "logit_bias",
    "momentum.image": "momentum",
    "momentum.text": "momentum",
    "momentum.image_tokens": "momentum.image_tokens",
    "momentum.text_tokens": "momentum.text_tokens",
    "momentum.text_mask": "momentum.text_tokens",
    "queue.image": "queue",
    "queue.text": "queue",
    "teacher.image": "teacher",
    "teacher.text": "teacher",
    "masked.tokens": "masked_text",
    "masked.mask": "masked_text",
    "masked.labels": "masked_text",
    "told.loss": "captions",
    "pictures": "picture_ids",
    "captions": "caption_ids",
    "hard_text": "hard_texts",
    "hard_mask": "hard_texts",
    "hard_captions": "hard_texts",
}
NEED_OF_ATTRIBUTE = {
    "image_BD": "image",
    "text_BD": "text",
    "image_tokens_NPD": "image_tokens",
    "text_tokens_NLD": "text_tokens",
    "text_mask_NL": "text_tokens",
    "image_tokens_BPD": "image_tokens",
    "text_tokens_BLD": "text_tokens",
    "text_mask_BL": "text_tokens",
    "momentum": "momentum",
    "queue": "queue",
    "teacher": "teacher",
    "fusion": "fusion",
    "masked": "masked_text",
    "captions": "captions",
    "picture_N": "picture_ids",
    "caption_VN": "caption_ids",
    "hard_text_KND": "hard_texts",
    "hard_mask_KN": "hard_texts",
    "hard_caption_KN": "hard_texts",
}


def kind_of(name: str) -> type[base.Objective]:
    return importlib.import_module(f"vlp.objectives.{name}").Objective


def kinds(objective: base.Objective) -> set[str]:
    """Its needs without the numbers of those that are counted."""
    return {need.partition(":")[0] for need in objective.needs}


@pytest.fixture
def objective(objective_entry: dict[str, Any]) -> base.Objective:
    """Every objective, with and without its options, in the middle of its schedules."""
    return base.parse(objective_entry).at(Span(100, 10, 1000), 50)


@pytest.fixture
def evaluate(make: Any, objective: base.Objective) -> Callable[..., Loss]:
    """``evaluate(inputs)``: the loss of ``objective``, with the same random numbers each time."""
    towers = {dtype: make.fusion(objective, dtype) for dtype in (torch.float32, torch.float64)}

    def loss(inputs: dict[str, Tensor], **options: Any) -> Loss:
        torch.manual_seed(5)
        return objective.loss(make.embeddings(inputs, towers[inputs["logit_scale"].dtype], **options))

    return loss


def leaves_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs with a gradient, as in training: what the model gives, in floating point."""
    return {
        name: value.requires_grad_()
        for name, value in inputs.items()
        if value.is_floating_point() and not name.startswith(("momentum.", "teacher.", "queue."))
    }


def gradients(loss: Loss, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss.total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


class Constants(TorchFunctionMode):
    """Remembers what an objective takes as constant: what it detaches, or computes inside ``torch.no_grad``.

    The first evaluation inside it leaves these values in ``values``; one that is given them has the same constants,
    whatever its inputs, as finite differences need it.
    """

    def __init__(self, values: list[Tensor] | None = None) -> None:
        super().__init__()
        self.values: list[Tensor] = []
        self._given = None if values is None else iter(values)
        self._depth = 0

    def __enter__(self) -> Constants:
        self._plain = plain = torch.no_grad.__enter__, torch.no_grad.__exit__

        def enter(context: torch.no_grad) -> None:
            self._depth += 1
            plain[0](context)

        def leave(context: torch.no_grad, *error: Any) -> None:
            self._depth -= 1
            plain[1](context, *error)

        # The forward of an autograd.Function, too, runs without gradient: hence not torch.is_grad_enabled().
        torch.no_grad.__enter__, torch.no_grad.__exit__ = enter, leave  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.no_grad.__enter__, torch.no_grad.__exit__ = self._plain  # type: ignore[method-assign]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and (self._depth or function.__name__ == "detach"):
            if self._given is not None:
                return next(self._given).clone()
            self.values.append(result.clone())
        return result


# ---- What it says of itself


@pytest.mark.parametrize("name", OBJECTIVES)
def test_its_docstring_is_a_contract(name):
    text = importlib.import_module(f"vlp.objectives.{name}").__doc__ or ""
    words = " ".join(text.split())
    assert re.search(r"^ {4,}\S.* = ", text, re.MULTILINE), "no indented line with a formula"
    for part in ("Columns", "Cost", "initialisation", "Relations", "Source"):
        assert part in words, f"no {part}"
    assert len(text.splitlines()[0]) <= 120


@pytest.mark.parametrize("name", OBJECTIVES)
def test_its_options_are_described(name):
    fields = kind_of(name).model_fields
    assert [field for field, info in fields.items() if field != "name" and not info.description] == []


def test_its_needs_are_known_and_its_options_say_from_where(objective):
    counted = r"(image|text)_views:[2-9]|hard_texts:[1-9]"
    assert [need for need in objective.needs - NEEDS if not re.fullmatch(counted, need)] == []
    for need, field in FIELD_OF_NEED.items():
        assert need not in objective.needs or hasattr(objective, field), f"needs {need} without the field {field}"
    for need in objective.needs:
        assert not need.startswith("momentum.") or "momentum" in objective.needs


def test_no_two_objectives_log_different_things_under_one_name(make, objective_entries):
    owner: dict[str, str] = {}
    for entry in objective_entries:
        objective, name = base.parse(entry).at(Span(100, 10, 1000), 50), entry["name"]
        embedded = make.embeddings(make.inputs(objective), make.fusion(objective))
        for part in objective.loss(embedded).parts:
            assert part not in PARTS_OF_THE_TRAINER
            assert "/" not in part
            assert "." not in part
            if part not in objective.shared_parts:
                assert owner.setdefault(part, name) == name, f"{part}: {owner[part]} and {name}"


# ---- A number and its gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_a_finite_scalar_with_a_gradient(make, objective, evaluate, dtype):
    inputs = make.inputs(objective, dtype=dtype)
    leaves = leaves_of(inputs)
    loss = evaluate(inputs)
    assert loss.total.shape == ()
    assert loss.total.isfinite()
    assert loss.total.dtype == dtype, "computed in the precision of its features"
    found = gradients(loss, leaves)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert any(gradient.abs().sum() > 0 for gradient in found.values())
    for name, part in loss.parts.items():
        assert part.shape == (), name
        assert part.isfinite(), name


def test_its_gradient_is_that_of_finite_differences(make, objective, evaluate):
    """In fp64, along random directions of each feature, token and scalar that the model gives."""
    inputs = make.inputs(objective)
    leaves = leaves_of(inputs)
    with Constants() as constants:
        loss = evaluate(inputs)
    found = gradients(loss, leaves)
    random, step = torch.Generator().manual_seed(2), 1e-5
    for name, leaf in leaves.items():
        for _ in range(3):
            direction = torch.randn(leaf.shape, generator=random, dtype=leaf.dtype)
            moved = [{**inputs, name: leaf.detach() + sign * step * direction} for sign in (1, -1)]
            around = []
            for other in moved:
                with Constants(constants.values):
                    around.append(evaluate(other).total)
            measured = (around[0] - around[1]) / (2 * step)
            expected = (found[name] * direction).sum()
            torch.testing.assert_close(measured, expected, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_it_is_finite_where_all_features_are_equal(make, objective, evaluate, scale):
    """A collapsed model, or a batch of one picture over and over: no division by zero, no root of it."""
    inputs = make.inputs(objective, dtype=torch.float32)
    for name in ("image", "text"):
        inputs[name] = torch.ones_like(inputs[name])
    inputs["logit_scale"] = torch.tensor(scale)
    leaves = leaves_of(inputs)
    loss = evaluate(inputs)
    assert loss.total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, leaves).values())


# ---- What it depends on


def test_the_order_of_the_pairs_does_not_matter(make, objective, evaluate):
    """Nor for what it draws: that may depend on the step and on what pairs say and show, not on their places."""
    inputs = make.inputs(objective)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    other = {
        name: value[order] if value.ndim and not name.startswith("queue.") else value for name, value in inputs.items()
    }
    torch.testing.assert_close(evaluate(other).total, evaluate(inputs).total, rtol=1e-10, atol=1e-12)


def test_a_rotation_of_the_common_space_changes_nothing(make, objective, evaluate):
    if objective.needs & {"fusion", "masked_text"}:
        pytest.skip("its fusion tower has weights of its own")
    inputs = make.inputs(objective)
    random = torch.Generator().manual_seed(4)
    rotations = {
        width: torch.linalg.qr(torch.randn(width, width, generator=random, dtype=torch.float64))[0]
        for width in {value.shape[-1] for value in inputs.values() if value.is_floating_point() and value.ndim > 1}
    }
    other = {
        name: value @ rotations[value.shape[-1]] if value.is_floating_point() and value.ndim > 1 else value
        for name, value in inputs.items()
    }
    torch.testing.assert_close(evaluate(other).total, evaluate(inputs).total, rtol=1e-10, atol=1e-10)


def changed(name: str, value: Tensor) -> list[Tensor]:
    """Other values of the same kind; one of them should be felt."""
    if value.is_floating_point():
        return [value + torch.randn(value.shape, generator=torch.Generator().manual_seed(9), dtype=value.dtype)]
    if name.endswith("mask"):
        return [torch.ones_like(value)]
    if name == "masked.labels":
        return [torch.where(value >= 0, value + 1, value)]
    # Pictures, captions: no two are equal, or all are.
    return [torch.arange(value.numel()).view_as(value), torch.ones_like(value)]


def test_it_uses_what_it_needs_and_nothing_else(make, objective, evaluate):
    """The loss moves with every input that ``needs`` names, each view too, and with no other."""
    needed = make.inputs(objective)
    everything = make.inputs(objective, everything=True)
    inputs = {**everything, **needed}
    loss = evaluate(inputs).total
    torch.testing.assert_close(evaluate(needed).total, loss, rtol=0, atol=0)
    for name, need in NEED_OF_INPUT.items():
        if name in ("image", "text"):
            continue
        if need == "momentum" and any(other.startswith("momentum.") for other in objective.needs):
            continue  # it may read the twin's tokens alone
        moved = any(
            not torch.equal(evaluate({**inputs, name: other}).total, loss) for other in changed(name, inputs[name])
        )
        assert moved == (need in kinds(objective)), f"{name}: {'used' if moved else 'unused'}"
    for name in ("image", "text"):
        views = inputs[name].shape[1]
        for view in range(views):
            other = inputs[name].clone()
            other[:, view] = changed(name, other[:, view])[0]
            moved = not torch.equal(evaluate({**inputs, name: other}).total, loss)
            assert moved == (name in objective.needs or views > 1), f"view {view} of {name}"


class Recording(Embeddings):
    """Embeddings that remember what was read of them."""

    read: ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> Any:
        if name in NEED_OF_ATTRIBUTE:
            Recording.read.add(NEED_OF_ATTRIBUTE[name])
        return super().__getattribute__(name)


def test_it_reads_and_gathers_no_more_than_it_needs(make, objective, evaluate):
    """Reading the global batch's features gathers them: what is not used should not travel."""
    Recording.read = set()
    evaluate(make.inputs(objective, everything=True) | make.inputs(objective), kind=Recording)
    by_view = {f"{kind}" for kind in ("image", "text") if any(n.startswith(f"{kind}_views:") for n in objective.needs)}
    assert Recording.read - kinds(objective) - by_view == set()
    optional = set(NEED_OF_ATTRIBUTE.values()) - {"image", "text"}
    assert (kinds(objective) & optional) - Recording.read == set()


# ---- Precision and size


def test_bf16_features_give_the_loss_of_their_values_in_fp32(make, objective, evaluate):
    """To 5e-3, little more than bf16 rounds: in training features are fp32, losses outside may be given others."""
    if objective.needs & {"fusion", "masked_text"}:
        pytest.skip("its fusion tower has weights in fp32")
    embedded = make.embeddings(make.inputs(objective, dtype=torch.float32))
    short = {name: getattr(embedded, name).bfloat16() for name in ("image_VND", "text_VND")}
    wide = {name: value.float() for name, value in short.items()}
    actual, expected = (objective.loss(replace(embedded, **features)).total for features in (short, wide))
    torch.testing.assert_close(actual.float(), expected, rtol=5e-3, atol=1e-5)


def test_autocast_does_not_reach_into_it(make, objective, evaluate):
    inputs = make.inputs(objective, dtype=torch.float32)
    expected = evaluate(inputs).total
    # A fusion tower is a network: under autocast it computes in bf16, as it should.
    tolerance = 2e-2 if objective.needs & {"fusion", "masked_text"} else 1e-4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = evaluate(inputs).total
    torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=tolerance)


def test_a_batch_of_one_row_is_finite_or_refused_by_a_sentence(make, objective, evaluate):
    inputs = make.inputs(objective, rows=1, dtype=torch.float32)
    leaves = leaves_of(inputs)
    refused, loss = "", None
    try:
        loss = evaluate(inputs)
    except ValueError as error:
        refused = str(error)
    if loss is None:
        assert re.fullmatch(r"[^\n]{20,}", refused)
        return
    assert loss.total.isfinite()
    assert all(part.isfinite() for part in loss.parts.values())
    assert all(gradient.isfinite().all() for gradient in gradients(loss, leaves).values())


def test_a_queue_may_be_empty_yet(make, objective, evaluate):
    if "queue" not in objective.needs:
        pytest.skip("needs no queue")
    inputs = make.inputs(objective, dtype=torch.float32)
    inputs |= {name: value[:0] for name, value in inputs.items() if name.startswith("queue.")}
    leaves = leaves_of(inputs)
    loss = evaluate(inputs)
    assert loss.total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, leaves).values())


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
def test_cached_micro_batches_of_any_size_are_one_batch(make, objective, micro_batch_size):
    """Loss, parts and gradients: also where the last micro-batch is smaller than the others."""
    expected, expected_gradients = step_of(make, objective, 99)
    actual, actual_gradients = step_of(make, objective, micro_batch_size)
    torch.testing.assert_close(actual.total, expected.total, rtol=1e-5, atol=1e-6)
    assert actual.parts.keys() == expected.parts.keys()
    for name, part in expected.parts.items():
        torch.testing.assert_close(actual.parts[name], part, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(actual_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: n + m)


def step_of(make: Any, objective: base.Objective, micro_batch_size: int) -> tuple[Loss, dict[str, Tensor]]:
    """A training step on parameters that are the features themselves."""
    rows = ROWS + 1  # which neither 3 nor 4 divides
    inputs = make.inputs(objective, rows=rows, dtype=torch.float32)
    inputs["logit_scale"] = inputs["logit_scale"].log()
    leaves = leaves_of(inputs)
    fusion = make.fusion(objective, torch.float32)

    def encode(batch: Batch, owner: str = "") -> embeddings.Outputs:
        chosen = torch.tensor([int(key) for key in batch.keys])
        mine = {name.removeprefix(owner): value for name, value in inputs.items() if name.startswith(owner)}
        named = {name.replace("masked.", "masked_"): value for name, value in mine.items()}
        told = {
            f"caption_{name}": inputs[f"told.{name}"][chosen].mean()
            for name in ("loss", "nll")
            if "told.loss" in inputs
        }
        return {
            **(told if not owner else {}),
            "logit_bias": torch.zeros(()),
            **{
                n: v[chosen] if v.ndim else v
                for n, v in named.items()
                if "." not in n and n not in ("pictures", "captions", "hard_captions", "hard_mask")
            },
        }

    def guide(owner: str) -> embeddings.Encode | None:
        return (lambda batch: encode(batch, f"{owner}.")) if f"{owner}.image" in inputs else None

    queue = Queue(inputs["queue.image"], inputs["queue.text"]) if "queue.image" in inputs else None
    texts = inputs.get("captions", torch.arange(rows)[:, None])
    hard = {}
    if "hard_text" in inputs:
        hard = {"hard_text_KNL": inputs["hard_captions"].T[..., None], "hard_mask_KN": inputs["hard_mask"].T}
    batch = Batch(
        torch.zeros(1, rows, 1),
        texts.T[..., None],
        tuple(str(row) for row in range(rows)),
        ("",) * rows,
        picture_N=inputs.get("pictures"),
        **hard,
    )

    def loss_of(embedded: Embeddings) -> Loss:
        return base.combined_loss([objective], embedded)

    done = embeddings.backward(
        embeddings.Encoders(encode, momentum=guide("momentum"), teacher=guide("teacher"), fusion=fusion, queue=queue),
        batch,
        *((loss_of, None) if objective.couples_batch else (None, loss_of)),
        micro_batch_size=micro_batch_size,
        seeds=(1, 2),
        backward_of=lambda total: total.backward(),
        no_sync=nullcontext,
    )
    found = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    if fusion is not None:
        found |= {f"fusion.{n}": p.grad for n, p in fusion.named_parameters() if p.grad is not None}
    return done.loss, found
