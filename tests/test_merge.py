"""Models merged tensor by tensor: what must hold of any way to do it, and a directory that open_clip loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import cli, merge_sweep
from vlp.encoders.openclip import ModelOptions, build, load, save_openclip_directory
from vlp.merge import Merging, fuse, merge
from vlp.types import UserError

State = dict[str, Tensor]


def state(seed: int, around: State | None = None) -> State:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (4, 3), "bias": (4,), "logit_scale": (), "bn.running_mean": (4,)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if around is not None:
        drawn = {name: around[name] + 0.1 * value for name, value in drawn.items()}
    return {**drawn, "ids": torch.arange(3), "bn.num_batches_tracked": torch.tensor(seed)}


BASE = state(0)
TUNED = [state(seed, BASE) for seed in (1, 2, 3)]
WAYS = [Merging(), Merging("wise-ft", 1.0), Merging("delta"), Merging("delta", gamma=3.0)]


def base_of(merging: Merging) -> State | None:
    return None if merging.method == "mean" else BASE


def equal(one: State, other: State) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one if "num_batches" not in name)


@pytest.mark.parametrize("merging", WAYS)
def test_one_model_is_itself_and_equal_models_stay_to_the_bit(merging: Merging) -> None:
    assert equal(fuse([TUNED[0]], base_of(merging), merging).values, TUNED[0])
    assert equal(fuse([TUNED[0]] * 3, base_of(merging), merging).values, TUNED[0])
    assert equal(fuse([BASE, BASE], base_of(merging), merging).values, BASE)  # nothing moved: no division by zero


@pytest.mark.parametrize("merging", WAYS)
def test_the_order_of_models_does_not_matter(merging: Merging) -> None:
    one, other = (fuse(order, base_of(merging), merging).values for order in (TUNED, TUNED[::-1]))
    for name in ("weight", "bias", "logit_scale", "bn.running_mean"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-7)


def test_gamma_0_is_the_mean_and_weights_sum_to_1_in_each_tensor() -> None:
    mean, flat = fuse(TUNED, None, Merging()).values, fuse(TUNED, BASE, Merging("delta", gamma=0.0))
    for name in ("weight", "bias", "logit_scale"):
        torch.testing.assert_close(mean[name], sum(m[name] for m in TUNED) / 3)
        torch.testing.assert_close(flat.values[name], mean[name])
    for gamma in (0.0, 1.0, 20.0):
        weights = fuse(TUNED, BASE, Merging("delta", gamma=gamma)).weights
        assert all(sum(of_tensor) == pytest.approx(1) for of_tensor in weights.values())


def test_delta_weighs_a_model_by_how_far_it_went() -> None:
    base, near, far = ({"w": torch.full((2,), value)} for value in (1.0, 2.0, 4.0))
    assert fuse([near, far], base, Merging("delta")).weights["w"] == pytest.approx([0.25, 0.75])
    assert fuse([near, far], base, Merging("delta")).values["w"].tolist() == [3.5, 3.5]  # 1 + (1 + 3 * 3) / 4
    assert fuse([near, far], base, Merging("delta", gamma=2.0)).weights["w"] == pytest.approx([0.1, 0.9])
    assert fuse([near, far], base, Merging("delta", alpha=0.5)).values["w"].tolist() == [2.25, 2.25]
    still = fuse([near, base], base, Merging("delta"))
    assert still.weights["w"] == [1.0, 0.0]


def test_alpha_goes_from_the_base_to_the_tuned_model_and_weights_of_models_count() -> None:
    base, tuned = {"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([1.0, 0.0])}
    assert fuse([tuned], base, Merging("wise-ft", 0.25)).values["w"].tolist() == [0.25, 3.0]
    assert equal(fuse([tuned], base, Merging("wise-ft", 0.0)).values, base)
    assert fuse([base, tuned], None, Merging(weights=(1.0, 3.0))).values["w"].tolist() == [0.75, 1.0]


def test_the_ends_are_the_models_to_the_bit_where_one_is_tiny_beside_the_other() -> None:
    base, tuned = {"w": torch.tensor([1.0, 1e-30, -3e7])}, {"w": torch.tensor([1e-12, 2.0, 1.1e-7])}
    for method in ("wise-ft", "delta"):
        assert equal(fuse([tuned], base, Merging(method, 1.0)).values, tuned)
        assert equal(fuse([tuned], base, Merging(method, 0.0)).values, base)


def test_whole_numbers_must_agree_but_for_counters_of_batch_norms() -> None:
    fused = fuse(TUNED, None, Merging())
    assert fused.values["bn.num_batches_tracked"] == 1
    assert torch.equal(fused.values["ids"], torch.arange(3))
    assert any("1 batch norms" in note for note in fused.notes)
    assert any("logarithm" in note for note in fused.notes)
    with pytest.raises(UserError, match="ids holds whole numbers"):
        fuse([TUNED[0], {**TUNED[1], "ids": torch.arange(1, 4)}], None, Merging())


@pytest.mark.parametrize(
    ("merging", "models", "base", "word"),
    [
        (Merging(), 1, False, "several models"),
        (Merging(), 2, True, "--base has no effect"),
        (Merging(alpha=0.5), 2, False, "--base"),
        (Merging("wise-ft"), 1, False, "name it by --base"),
        (Merging("wise-ft", 1.5), 1, True, "between 0"),
        (Merging("delta", weights=(1.0,)), 1, True, "--weights has no effect"),
        (Merging(weights=(1.0,)), 2, False, "give one each"),
        (Merging("wise-ft", weights=(2.0,)), 1, True, "no effect on one model"),
        (Merging(weights=(1.0, -1.0)), 2, False, "negative"),
        (Merging(weights=(float("nan"), 1.0)), 2, False, "finite"),
        (Merging(weights=(1e308, 1e308)), 2, False, "finite"),
        (Merging("delta", gamma=-1.0), 1, True, "--gamma"),
    ],
)
def test_what_has_no_effect_or_sense_is_refused(merging: Merging, models: int, base: bool, word: str) -> None:
    with pytest.raises(UserError, match=word):
        merging.check(models, base)


def test_other_shapes_and_names_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"weight has the shape \[4, 3\]"):
        fuse([TUNED[0], {**TUNED[1], "weight": torch.zeros(2, 3)}], None, Merging())
    with pytest.raises(UserError, match="only one has more"):
        fuse([TUNED[0], {**TUNED[1], "more": torch.zeros(2)}], None, Merging())


# ---- Directories


@pytest.fixture
def models(tmp_path: Path, tiny_model: dict[str, Any]) -> list[str]:
    paths = [tmp_path / "base", tmp_path / "tuned"]
    for seed, path in enumerate(paths):
        save_openclip_directory(build(ModelOptions(config=tiny_model), seed), path)
    return [str(path) for path in paths]


def test_the_directory_is_a_model_of_open_clip_and_says_of_what_it_was_made(models: list[str], tmp_path: Path) -> None:
    cli.main(["merge", str(tmp_path / "out"), models[1], "--base", models[0], "--alpha", "0.25"])
    ours = load(str(tmp_path / "out"))
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'out'}")
    base, tuned = (load(path).clip.state_dict() for path in models)
    for name, value in ours.clip.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])
        torch.testing.assert_close(value, torch.lerp(base[name], tuned[name], 0.25))
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["method"] == "wise-ft"
    assert record["alpha"] == 0.25
    assert [record["base"]["model"], record["models"][0]["model"]] == models
    assert "arXiv:2109.01903" in (tmp_path / "out" / "README.md").read_text()


def test_models_of_another_kind_are_refused_by_what_differs_and_nothing_is_left(
    models: list[str], tmp_path: Path, tiny_model: dict[str, Any]
) -> None:
    other = build(ModelOptions(config=tiny_model, picture={"mean": (0.5, 0.5, 0.5)}), 0)
    save_openclip_directory(other, tmp_path / "grey")
    with pytest.raises(UserError, match="differ in their preprocessing of pictures"):
        merge(tmp_path / "out", [models[0], str(tmp_path / "grey")], None, Merging())
    wide = {**tiny_model, "text_cfg": {**tiny_model["text_cfg"], "layers": tiny_model["text_cfg"]["layers"] + 1}}
    save_openclip_directory(build(ModelOptions(config=wide), 0), tmp_path / "deep")
    with pytest.raises(UserError, match="differ in their architecture"):
        merge(tmp_path / "out", [models[0], str(tmp_path / "deep")], None, Merging())
    save_openclip_directory(build(ModelOptions(config=tiny_model, init_logit_bias=-10.0), 0), tmp_path / "biased")
    with pytest.raises(UserError, match="only one has logit_bias"):
        merge(tmp_path / "out", [models[0], str(tmp_path / "biased")], None, Merging())
    assert not (tmp_path / "out").exists()


def test_a_sweep_evaluates_every_share_and_draws_the_way(models: list[str], tmp_path: Path) -> None:
    write_scenes(ScenesOptions(out=tmp_path / "scenes", num_train=2, num_eval=16))
    sets = [str(tmp_path / "scenes" / "eval" / name) for name in ("retrieval", "colour")]
    mergings = [Merging("wise-ft", alpha) for alpha in (0.0, 1.0)]
    table = merge_sweep.sweep(tmp_path / "sweep", models[1:], models[0], mergings, sets)
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["rows"]
    assert [row["alpha"] for row in rows] == [0, 1]
    assert "| alpha | retrieval | colour |" in table
    for row, path in zip(rows, models, strict=True):  # the ends are the models themselves
        (alone,) = merge_sweep.evaluation.evaluate(load(path), sets[:1], 256, "x", "y")
        assert row["scores"]["retrieval"] == merge_sweep.headline(alone)
    assert (tmp_path / "sweep" / "sweep.svg").read_text().startswith("<?xml")
