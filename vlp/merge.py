"""One model out of several of the same kind: between a model and what it was tuned to, or the mean of several.

WiSE-FT (Wortsman et al. 2021, arXiv:2109.01903) goes a share ``alpha`` of the way from a base to a tuned model; a soup
(Wortsman et al. 2022, arXiv:2203.05482) is a mean. Both are base + alpha * sum_k w_k (model_k - base), tensor by
tensor; ``delta`` weighs each model in each tensor by how far it went there, w_k ~ ||model_k - base||^gamma, so that
gamma 0 is the mean (CoDiEmb names the idea; no formula of it is published).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vlp import ema
from vlp.data.write import new_directory
from vlp.encoders import source
from vlp.encoders.openclip import load, save_openclip_directory
from vlp.encoders.two_tower import TwoTower
from vlp.types import UserError

State = Mapping[str, Tensor]
Method = Literal["mean", "wise-ft", "delta"]
_COUNTER = "num_batches_tracked"  # of batch norms: no part of what they compute
_STATISTICS = ("running_mean", "running_var")
_PLACES = ("hf_model_name", "hf_tokenizer_name")  # each checkpoint has its own copy
_STARTS = ("init_logit_scale", "init_logit_bias")  # which the weights replace
_TEXTS = ["a red circle left of a blue square", "", "Zwei CATS & a very long caption " + "about pictures " * 60]


@dataclass(frozen=True)
class Merging:
    """How models become one.

    Attributes:
        alpha: share of the way from the base; 1 without a base.
        weights: of the models, in their order, made to sum to 1; equal without.
        gamma: of the method delta.
    """

    method: Method = "mean"
    alpha: float = 1.0
    weights: tuple[float, ...] | None = None
    gamma: float = 1.0

    def check(self, num_models: int, has_base: bool) -> None:
        """Refuse what would have no effect or no sense.

        Raises:
            UserError: with the cure.
        """
        if self.method == "mean" and has_base:
            raise UserError("--base has no effect on a mean: remove it, or take --method wise-ft or delta")
        if self.method == "mean" and num_models < 2:
            raise UserError("a mean is of several models: name more, or give --base for a way between two")
        if self.method != "mean" and not has_base:
            raise UserError(f"--method {self.method} starts at a model: name it by --base")
        if self.method == "mean" and self.alpha != 1:
            raise UserError("--alpha is a share of the way from --base: name that")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"--alpha {self.alpha:g} must lie between 0 (the base) and 1 (the tuned model)")
        if self.weights is not None and self.method == "delta":
            raise UserError("--weights has no effect with --method delta, which finds its own: remove it")
        if self.weights is not None and num_models == 1:
            raise UserError("--weights has no effect on one model: remove it; its share of the way is --alpha")
        if self.weights is not None and len(self.weights) != num_models:
            raise UserError(f"--weights has {len(self.weights)} numbers for {num_models} models: give one each")
        if self.weights is not None and (min(self.weights) < 0 or sum(self.weights) <= 0):
            raise UserError("--weights must not be negative, and one of them above 0")
        if self.weights is not None and not math.isfinite(sum(self.weights)):
            raise UserError("--weights must be finite numbers: write shares, such as 1,3")
        if not 0 <= self.gamma < math.inf:
            raise UserError(f"--gamma {self.gamma:g} must be 0 (the mean) or above")


@dataclass(frozen=True)
class Fused:
    """Merged values, the weights of each tensor where they differ (delta), and what has to be known of both."""

    values: dict[str, Tensor]
    weights: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def fuse(states: Sequence[State], base: State | None, merging: Merging) -> Fused:
    """Values under the names of ``states``, in their types; sums in fp64, so that equal models give themselves.

    Raises:
        UserError: other names or shapes, or whole numbers that differ.
    """
    everything = [*([base] if base is not None else []), *states]
    _check_shapes(everything)
    fused = Fused({})
    for name, first in everything[0].items():
        values = [state[name] for state in states]
        if not first.is_floating_point():
            if not name.endswith(_COUNTER) and any(not torch.equal(first, value) for value in values):
                raise UserError(f"{name} holds whole numbers that differ between the models: they are not of one kind")
            fused.values[name] = first
            continue
        wide, start = [value.double() for value in values], None if base is None else base[name].double()
        weights = _weights(wide, start, merging)
        mean = sum(weight * value for weight, value in zip(weights, wide, strict=True))
        assert isinstance(mean, Tensor)
        # lerp is exact at both ends, where start + alpha * (mean - start) has lost what is small beside start.
        fused.values[name] = (mean if start is None else start.lerp(mean, merging.alpha)).to(first.dtype)
        if merging.method == "delta":
            fused.weights[name] = weights
    fused.notes.extend(_notes(fused.values))
    return fused


def _weights(values: Sequence[Tensor], base: Tensor | None, merging: Merging) -> list[float]:
    """Of one tensor; they sum to 1. Where no model moved, equal ones."""
    given: Sequence[float] = merging.weights or [1.0] * len(values)
    if merging.method == "delta":
        assert base is not None
        lengths = [float((value - base).norm()) for value in values]
        longest = max(lengths)  # as the unit, so that no power of it overflows
        given = [(length / longest) ** merging.gamma for length in lengths] if longest else given
    return [weight / sum(given) for weight in given]


def _notes(values: State) -> list[str]:
    norms = sum(name.endswith(_STATISTICS[0]) for name in values)
    notes = ["the logit scale is merged as its logarithm"] if "logit_scale" in values else []
    if norms:
        notes.append(
            f"statistics of {norms} batch norms are merged like weights, though those of the merged weights would be "
            "others, which only data can tell; their counters are the first model's"
        )
    return notes


def _check_shapes(states: Sequence[State]) -> None:
    first, *others = states
    for other in others:
        if missing := sorted(first.keys() ^ other.keys()):
            raise UserError(f"the models have different weights: only one has {missing[0]}")
        for name, value in first.items():
            if value.shape != other[name].shape:
                raise UserError(
                    f"{name} has the shape {list(value.shape)} in one model, {list(other[name].shape)} in another"
                )


def open_models(references: Sequence[str]) -> list[TwoTower]:
    """Models that can be merged, in host memory.

    Raises:
        UserError: one cannot be loaded, or is of another kind than the first.
    """
    models = [load(reference) for reference in references]
    first = _kind(models[0])
    for reference, model in zip(references[1:], models[1:], strict=True):
        for what, value in _kind(model).items():
            if value != first[what]:
                raise UserError(
                    f"{reference} and {references[0]} differ in their {what}: only models of one kind merge"
                )
    return models


def _kind(model: TwoTower) -> dict[str, Any]:
    """What must be the same, under what it is called."""
    config = model.openclip_config
    built = {key: value for key, value in config["model_cfg"].items() if key not in _STARTS}
    built["text_cfg"] = {key: value for key, value in built["text_cfg"].items() if key not in _PLACES}
    return {
        "architecture": built,
        "captioning head": config.get("captioner_cfg"),
        "preprocessing of pictures": model.picture_format,
        "tokenizer": model.tokenizer(_TEXTS).tolist(),
    }


def state_of(model: TwoTower) -> dict[str, Tensor]:
    """All that is merged, a captioning head included."""
    return ema.state(model.averaged())


@torch.no_grad()
def fill(model: TwoTower, values: State) -> None:
    for name, value in state_of(model).items():
        value.copy_(values[name])


def merge(out: str | Path, references: Sequence[str], base: str | None, merging: Merging) -> dict[str, Any]:
    """Write the merged model to the new directory ``out``, as ``open_clip`` loads it, with ``merge.json``.

    Returns:
        What stands in ``merge.json``.

    Raises:
        UserError: models that do not merge, or a directory that is not empty.
    """
    merging.check(len(references), base is not None)
    everything = [*([base] if base is not None else []), *references]
    models = open_models(everything)
    final = new_directory(out).resolve()
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        states = [state_of(model) for model in models]
        fused = fuse(states[len(states) - len(references) :], states[0] if base is not None else None, merging)
        fill(models[0], fused.values)
        record = _record(everything, models, base, merging, fused)
        save_openclip_directory(models[0], partial, final=final)
        (partial / "merge.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(_card(final.name, record), encoding="utf-8")
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        final.rmdir()
        raise
    return record


def _record(
    references: Sequence[str], models: Sequence[TwoTower], base: str | None, merging: Merging, fused: Fused
) -> dict[str, Any]:
    found = [
        {"model": reference, "found": source.of_reference(reference).described, "weights": model.weights}
        for reference, model in zip(references, models, strict=True)
    ]
    settings = {key: value for key, value in asdict(merging).items() if key != "gamma" or merging.method == "delta"}
    return {
        **settings,
        "base": found[0] if base is not None else None,
        "models": found[1:] if base is not None else found,
        "notes": fused.notes,
        **({"weights_of_tensors": fused.weights} if fused.weights else {}),
    }


def _card(name: str, record: Mapping[str, Any]) -> str:
    sources = {"mean": "arXiv:2203.05482", "wise-ft": "arXiv:2109.01903", "delta": "weights by ||model - base||^gamma"}
    base = [f"- base: `{record['base']['found']}`"] if record["base"] else []
    models = [f"- `{model['found']}` ({model['weights']})" for model in record["models"]]
    settings = ", ".join(f"{key} {record[key]}" for key in ("alpha", "weights", "gamma") if record.get(key) is not None)
    parts = [
        f"# {name}",
        f"Merged by vlp: {record['method']} ({sources[record['method']]}), {settings}.",
        "\n".join([*base, *models]),
        "\n".join(f"- {note}" for note in record["notes"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
