"""Durations, schedules and parameter groups."""

from __future__ import annotations

import pytest
from torch import nn

from vlp.optim import OptimOptions, Span, adamw, learning_rate
from vlp.types import UserError

SPAN = Span(total_steps=1000, global_batch_size=50, num_samples=2000)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [(7, 7), ("7 steps", 7), ("1 step", 1), ("1e3 samples", 20), ("1001 samples", 21), ("0.5 epochs", 20), ("5%", 50)],
)
def test_durations(duration, steps):
    assert SPAN.steps(duration, "train.warmup") == steps


@pytest.mark.parametrize("duration", ["5 minutes", "x", "", "5", "1.2.3 samples", "-5 steps", -5])
def test_a_duration_that_is_none_names_its_key(duration):
    with pytest.raises(UserError, match=r"train\.warmup"):
        SPAN.steps(duration, "train.warmup")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"cooldown": 5}, "cooldown has no effect"),
        ({"schedule": "constant", "min_lr": 1e-5}, "min_lr has no effect"),
        ({"lr": 1e-3, "min_lr": 1e-2}, "exceeds lr"),
        ({"betas": (1.5, 0.9)}, "betas"),
    ],
)
def test_options_without_an_effect_or_a_sense_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        OptimOptions(**options)


def rate(step: int, **options: object) -> float:
    return learning_rate(OptimOptions(lr=1.0, warmup=100, **options), SPAN, step)


def test_warmup_rises_linearly_to_the_peak():
    assert [rate(step) for step in (0, 49, 99)] == pytest.approx([0.01, 0.5, 1.0])


def test_cosine_halves_in_the_middle_and_ends_at_the_minimum():
    assert rate(550) == pytest.approx(0.5)
    assert rate(1000, min_lr=0.1) == pytest.approx(0.1)
    assert 0 < rate(999) < 1e-5


def test_constant_stays():
    assert rate(999, schedule="constant") == 1.0


def test_wsd_is_flat_then_falls_linearly_over_the_cooldown():
    options = {"schedule": "wsd", "cooldown": "20%"}
    assert rate(799, **options) == 1.0
    assert rate(900, **options) == pytest.approx(0.5)
    assert rate(1000, **options) == 0.0


def test_no_warmup_starts_at_the_peak():
    assert learning_rate(OptimOptions(lr=1.0, warmup=0), SPAN, 0) == 1.0


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.ln_final = nn.LayerNorm(4)
        self.logit_scale = nn.Parameter(self.proj.weight.new_ones([]))


def test_only_matrices_decay():
    model = Towers()
    groups = adamw(model, OptimOptions(weight_decay=0.3)).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] == 0.3 for p in g["params"]}
    assert decayed == {id(model.proj.weight)}
    assert sum(len(g["params"]) for g in groups) == 5


def test_a_temperature_that_is_fixed_is_no_parameter_of_the_optimiser():
    model = Towers()
    model.logit_scale.requires_grad_(False)
    trained = [p for group in adamw(model, OptimOptions(temperature=0.07)).param_groups for p in group["params"]]
    assert all(p is not model.logit_scale for p in trained)
    assert len(trained) == 4


def test_a_temperature_may_be_as_low_as_the_clamp_allows_all_along():
    OptimOptions(temperature={"start": 1.0, "end": 0.01})
    OptimOptions(temperature=0.005, max_logit_scale=200)
    with pytest.raises(ValueError, match="raise one of them"):
        OptimOptions(temperature={"start": 1.0, "end": 0.0099})
    with pytest.raises(ValueError, match="raise one of them"):
        OptimOptions(temperature=0)


def test_a_model_without_trainable_parameters_is_refused():
    model = Towers().requires_grad_(False)
    with pytest.raises(UserError, match="lock_image"):
        adamw(model, OptimOptions())
