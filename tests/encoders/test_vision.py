"""Patches are left out before the embedding, and smaller pictures embedded, exactly as open_clip's own towers would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from open_clip.model import resize_pos_embed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vlp.encoders import vision
from vlp.encoders.openclip import ModelOptions, build, outline
from vlp.encoders.two_tower import TwoTower
from vlp.encoders.vision import PatchDropout
from vlp.types import UserError

TOWERS: dict[str, dict[str, Any]] = {
    "class-token": {},
    "mean": {"pool_type": "avg", "final_ln_after_pool": True},
    "attentional": {"attentional_pool": True, "attn_pooler_queries": 9, "attn_pooler_heads": 2},
    "other-blocks": {"no_ln_pre": True, "ls_init_value": 0.1, "pos_embed_type": "sin_cos_2d"},
}
TIMM = {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_proj": "linear", "timm_pool": "avg"}
HALF = PatchDropout(0.5, seed=7)


@pytest.fixture
def tower(tiny_model: dict[str, Any]) -> Callable[..., TwoTower]:
    """``tower(patch_dropout=0.5)``: the tiny model with another image tower, in training mode."""

    def make(**vision_cfg: Any) -> TwoTower:
        whole = vision_cfg if "timm_model_name" in vision_cfg else {**tiny_model["vision_cfg"], **vision_cfg}
        model = build(ModelOptions(config={**tiny_model, "vision_cfg": whole}), seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # open_clip's own positions are too small to tell places apart
            positions = getattr(model.clip.visual, "positional_embedding", None)
            if positions is not None:
                positions.copy_(torch.randn(positions.shape, generator=generator))
        return model

    return make


def pictures(rows: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, height, width, generator=torch.Generator().manual_seed(seed))


@contextmanager
def drawing(monkeypatch: pytest.MonkeyPatch, kept_NK: Tensor, num_patches: int, first: int) -> Iterator[None]:
    """Both open_clip and timm keep the places of the largest, or smallest, normal numbers: let those be ``kept_NK``."""
    numbers = torch.full((len(kept_NK), num_patches), -100.0 * first)
    order = torch.arange(kept_NK.shape[1], 0, -1).expand_as(kept_NK) * float(first)
    numbers.scatter_(1, kept_NK, order)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape, **options: numbers)
        yield


# ---- Against open_clip's own dropout


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_kept_patches_give_what_open_clip_makes_of_them(
    tower: Any, monkeypatch: pytest.MonkeyPatch, name: str, share: float
) -> None:
    ours, theirs = tower(**TOWERS[name]).clip, tower(**TOWERS[name], patch_dropout=share).clip
    assert theirs.visual.patch_dropout.prob == share
    pixels, dropout = pictures(3), PatchDropout(share, seed=7)
    kept_NK = vision.kept_patches(pixels, 16, dropout)
    with drawing(monkeypatch, kept_NK, 16, first=1):
        expected = theirs.encode_image(pixels)
    found = vision.encode(ours, pixels, dropout)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for feature in (found, expected):
        feature.square().sum().backward()
    expected_of = dict(theirs.visual.named_parameters())
    for parameter, value in ours.visual.named_parameters():
        if value.requires_grad:
            of = expected_of[parameter].grad
            torch.testing.assert_close(value.grad, of, rtol=1e-4, atol=1e-5 * float(of.abs().max()), msg=parameter)


def test_in_half_precision_too(tower: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tower().clip, tower(patch_dropout=0.5).clip
    pixels = pictures(3)
    with torch.autocast("cpu", torch.bfloat16), drawing(monkeypatch, vision.kept_patches(pixels, 16, HALF), 16, 1):
        found, expected = vision.encode(ours, pixels, HALF), theirs.encode_image(pixels)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_states_of_patches_are_those_of_the_kept_ones(tower: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tower(), tower(patch_dropout=0.5, output_tokens=True)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    pixels = ours.normalise(images)
    with drawing(monkeypatch, vision.kept_patches(pixels, 16, HALF), 16, first=1):
        feature, states = theirs.clip.visual(pixels)
    found = ours.image_states(images, 2, HALF)
    torch.testing.assert_close(found.feature_MD, feature, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.states_NLW, states[:2], rtol=1e-5, atol=1e-5)
    assert found.in_common().shape == (2, 8, 32)


def test_a_vit_of_timm_keeps_the_patches_that_its_own_layer_would(tower: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tower(**TIMM).clip, tower(**TIMM, patch_dropout=0.5).clip
    assert theirs.visual.trunk.patch_drop.prob == 0.5
    pixels = pictures(2, 224, 224)
    with drawing(monkeypatch, vision.kept_patches(pixels, 196, HALF), 196, first=-1):
        expected = theirs.encode_image(pixels)
    torch.testing.assert_close(vision.encode(ours, pixels, HALF), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(vision.encode(ours, pixels), ours.encode_image(pixels)), "the layer is its own again"
    assert (expected - ours.encode_image(pixels)).abs().max() > 1e-3


@pytest.mark.parametrize("name", TOWERS)
def test_whole_pictures_are_embedded_by_the_tower_itself(tower: Any, name: str) -> None:
    clip, pixels = tower(**TOWERS[name]).clip, pictures(3)
    for dropout in (None, PatchDropout(0.0, seed=7)):
        assert torch.equal(vision.encode(clip, pixels, dropout), clip.encode_image(pixels))
    vision.encode(clip, pixels, HALF)
    assert "_embeds" not in vars(clip.visual), "the tower is its own again"


def test_pixels_of_patches_that_are_left_out_are_not_computed_with(tower: Any) -> None:
    clip, pixels = tower().clip, pictures(2)
    expected = vision.encode(clip, pixels, HALF)
    kept_NK = vision.kept_patches(pixels, 16, HALF)
    broken = pixels.clone()
    for row, kept in enumerate(kept_NK.tolist()):
        for place in set(range(16)) - set(kept):
            top, left = place // 4 * 8, place % 4 * 8
            broken[row, :, top : top + 8 : 2, left : left + 8] = torch.nan  # the other rows tell the pictures apart
    assert torch.equal(vision.encode(clip, broken, HALF), expected)
    assert vision.encode(clip, broken).isnan().all()


# ---- Which are kept


@pytest.mark.parametrize(("patches", "share", "kept"), [(16, 0.5, 8), (49, 0.7, 14), (196, 0.5, 98), (16, 0.99, 1)])
def test_as_many_are_kept_as_open_clip_keeps(patches: int, share: float, kept: int) -> None:
    found_NK = vision.kept_patches(pictures(5), patches, PatchDropout(share, seed=0))
    assert found_NK.shape == (5, kept)
    assert all(row == sorted(set(row)) and 0 <= row[0] <= row[-1] < patches for row in found_NK.tolist())


def test_which_are_kept_is_a_function_of_the_seed_and_the_picture() -> None:
    pixels = pictures(40)
    kept_NK = vision.kept_patches(pixels, 16, HALF)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(vision.kept_patches(pixels[order], 16, HALF), kept_NK[order])
    parts = [vision.kept_patches(part, 16, HALF) for part in pixels.split(7)]
    assert torch.equal(torch.cat(parts), kept_NK)
    assert len({tuple(row) for row in kept_NK.tolist()}) > 35, "each picture has its own"
    another = vision.kept_patches(pixels, 16, PatchDropout(0.5, seed=8))
    assert (another != kept_NK).any(1).sum() > 35


def test_pictures_that_differ_in_one_corner_keep_other_patches() -> None:
    """On white paper most pixels are the same in all pictures."""
    pixels = torch.full((64, 3, 64, 48), 1.9)
    pixels[:, :, 52:58, 40:46] = torch.linspace(-1, 1, 64).view(-1, 1, 1, 1)
    assert len({tuple(row) for row in vision.kept_patches(pixels, 48, HALF).tolist()}) == 64


def test_every_place_is_kept_as_often() -> None:
    kept_NK = vision.kept_patches(pictures(2000, 16, 16), 16, PatchDropout(0.75, seed=3))
    counts = torch.bincount(kept_NK.flatten(), minlength=16)
    # Binomial, n = 2,000 and p = 1/4: 500 with a standard deviation of 19.4.
    assert (counts - 500).abs().max() < 4 * 19.4


# ---- Smaller pictures


def at_size(tower: Any, size: list[int], **vision_cfg: Any) -> tuple[Any, Any]:
    """A tower, and open_clip's tower for pictures of ``size`` with the same weights as it loads them."""
    whole, smaller = tower(**vision_cfg).clip, tower(**vision_cfg, image_size=size).clip
    state = deepcopy(whole.state_dict())
    resize_pos_embed(state, smaller)
    smaller.load_state_dict(state)
    return whole, smaller


@pytest.mark.parametrize("size", [[16, 16], [24, 24], [8, 32], [24, 16]])
@pytest.mark.parametrize("name", ["class-token", "mean", "attentional"])
def test_smaller_pictures_have_the_features_of_a_tower_of_their_size(tower: Any, name: str, size: list[int]) -> None:
    whole, smaller = at_size(tower, size, **TOWERS[name])
    pixels = pictures(3, *size)
    expected = smaller.encode_image(pixels)
    torch.testing.assert_close(vision.encode(whole, pixels), expected, rtol=1e-5, atol=1e-5)
    leftover = torch.nn.functional.pad(pixels, (0, 5, 0, 3))  # less than a patch is no patch
    torch.testing.assert_close(vision.encode(whole, leftover), expected, rtol=1e-5, atol=1e-5)


def test_smaller_pictures_without_a_part_of_their_patches(tower: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, smaller = at_size(tower, [24, 16], patch_dropout=0.5)
    pixels = pictures(3, 27, 21)
    with drawing(monkeypatch, vision.kept_patches(pixels, 6, HALF), 6, first=1):
        expected = smaller.encode_image(pixels)
        torch.testing.assert_close(vision.encode(whole, pixels), expected, rtol=1e-5, atol=1e-5)  # of its own layer
    whole.visual.patch_dropout = torch.nn.Identity()
    torch.testing.assert_close(vision.encode(whole, pixels, HALF), expected, rtol=1e-5, atol=1e-5)


def test_small_pictures_teach_the_positions_of_the_whole(tower: Any) -> None:
    clip = tower().clip
    positions = clip.visual.positional_embedding
    vision.encode(clip, pictures(3, 16, 16)).square().sum().backward()
    assert (positions.grad.abs().amax(1) > 0).all()
    # Resizing is linear, and keeps what is the same everywhere: so does its gradient.
    with torch.no_grad():
        positions[1:] = 0.3
    torch.testing.assert_close(vision._positions(clip.visual, (2, 3))[1:], torch.full((6, 64), 0.3))


# ---- Processes and micro-batches


def stepped(rank: int, world: int, config: dict[str, Any], micro: int) -> dict[str, Tensor]:
    """Gradients of a mean over 12 pictures in two views, of which this rank has its part."""
    model = build(ModelOptions(config=config), seed=0)
    wrapped: Any = DistributedDataParallel(model) if world > 1 else model
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, 12, 3, 24, 24), generator=generator, dtype=torch.uint8)[:, rank::world]
    texts = model.tokenizer([f"picture {i}" for i in range(12)])[None, rank::world]
    for start in range(0, images.shape[1], micro):
        rows = slice(start, start + micro)
        found = wrapped(images[:, rows], texts[:, rows], dropout=HALF)
        loss = (found["image"] - found["text"]).square().sum() + sum(0.0 * v.sum() for v in found.values())
        if start + micro < images.shape[1] and world > 1:
            with wrapped.no_sync():
                (loss / images.shape[1]).backward()
        else:
            (loss / images.shape[1]).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("world", "micro"), [(2, 6), (2, 4), (1, 5)])
def test_any_layout_keeps_the_same_patches(run_ranks: Any, tiny_model: dict[str, Any], world: int, micro: int) -> None:
    expected = stepped(0, 1, tiny_model, 12)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for found in run_ranks(stepped, world, tiny_model, micro):
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * scale, msg=name)


# ---- What is refused


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "resnet": ({"layers": [1, 1, 1, 1], "width": 8, "head_width": 8}, {}, "kind ModifiedResNet cannot leave patches"),
    "timm": ({"timm_model_name": "resnet10t", "timm_proj": "linear"}, {}, "kind ResNet cannot leave patches out"),
    "own": ({"patch_dropout": 0.5}, {}, "vision_cfg.patch_dropout leaves patches out as well: remove one"),
    "timm-own": ({**TIMM, "patch_dropout": 0.5}, {}, "vision_cfg.patch_dropout leaves patches out as well"),
    "frozen": ({}, {"lock_image": True}, "model.lock_image freezes the image tower"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_leave_patches_out_is_refused(tiny_model: dict[str, Any], name: str) -> None:
    changes, options, sentence = REFUSED[name]
    whole = {**tiny_model["vision_cfg"], **changes} if name in ("own", "frozen") else {"image_size": 64, **changes}
    made = ModelOptions(config={**tiny_model, "vision_cfg": whole}, **options)
    for model in (build(made, seed=0), outline(made)):
        with pytest.raises(UserError, match=f"^train.patch_dropout: .*{sentence}") as raised:
            vision.check_dropout(model.clip)
        assert "\n" not in str(raised.value)


def test_what_can_passes(tower: Any, tiny_model: dict[str, Any]) -> None:
    for model in (tower(), tower(**TIMM), build(ModelOptions(config=tiny_model, lock_image=1), seed=0)):
        vision.check_dropout(model.clip)
