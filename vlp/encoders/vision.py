"""Pictures through the image tower: all of their patches or a part of them, of its own size or a smaller one.

A ViT's cost is that of its patches. Those that a step leaves out are left out before they are embedded (FLIP, Li et al.
2022, arXiv:2212.00794): the embedding of a patch depends on its own pixels alone, so those of the kept ones are
gathered and multiplied with the weight of the tower's convolution, which never sees the others. All that comes
after the embedding is the tower's own code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor, nn

from vlp import draws
from vlp.types import UserError

_LOOKED_AT = 16  # rows and columns of pixels that tell a picture from others

Grid = tuple[int, int]
"""Patches of a picture: rows, columns."""


class PatchDropout(NamedTuple):
    """Which patches a training step leaves out: ``share`` of each picture's, drawn by ``seed`` and the picture."""

    share: float
    seed: int


def encode(clip: Any, pixels_NCHW: Tensor, dropout: PatchDropout | None = None) -> Tensor:
    """Features ND of normalised pixels, not of length 1."""
    with embedding(clip.visual, pixels_NCHW, dropout):
        return clip.encode_image(pixels_NCHW, normalize=False)


def kept_patches(pixels_NCHW: Tensor, num_patches: int, dropout: PatchDropout) -> Tensor:
    """Places NK of the patches that are kept, rising; as many as open_clip keeps, at least one.

    A function of the seed and of the picture itself, so neither its row nor the process matters.
    """
    step = max(1, min(pixels_NCHW.shape[2:]) // _LOOKED_AT)
    looked_at = pixels_NCHW[:, :, step // 2 :: step, step // 2 :: step].float()
    bits_NL = looked_at.contiguous().view(torch.int32).flatten(1)  # as they are: to look at values would wait for them
    places_P = torch.arange(num_patches, device=pixels_NCHW.device)
    random_NP = draws.uniforms(dropout.seed, draws.identities(bits_NL)[:, None], places_P)
    kept = max(1, int(num_patches * (1 - dropout.share)))
    return random_NP.topk(kept, dim=1).indices.sort(dim=1).values


def check_dropout(clip: Any) -> None:
    """Refuse towers that cannot leave patches out, or whose features would suffer from it in vain.

    Raises:
        UserError: with the cure.
    """
    visual = clip.visual
    if not isinstance(visual, VisionTransformer) and not _has_dropout(visual):
        raise UserError(
            f"train.patch_dropout: an image tower of the kind {kind(visual)} cannot leave patches out: remove it, or "
            "choose a ViT"
        )
    own = visual.patch_dropout if isinstance(visual, VisionTransformer) else visual.trunk.patch_drop
    if not isinstance(own, nn.Identity):
        raise UserError(
            "train.patch_dropout: model.config.vision_cfg.patch_dropout leaves patches out as well: remove one of them"
        )
    if not any(parameter.requires_grad for parameter in visual.parameters()):
        raise UserError(
            "train.patch_dropout: model.lock_image freezes the image tower, which would see less and learn nothing "
            "from it: remove one of them"
        )


def patch_size(visual: Any) -> tuple[int, int]:
    """Height and width of a patch; of a tower without patches, the pixels by which its pictures may change."""
    trunk = getattr(visual, "trunk", None)
    places: tuple[Any, ...] = (visual, getattr(trunk, "patch_embed", None), getattr(trunk, "embeds", None))
    found = next((place.patch_size for place in places if hasattr(place, "patch_size")), (8, 8))
    return found[0], found[1]


@contextmanager
def embedding(visual: Any, pixels_NCHW: Tensor, dropout: PatchDropout | None) -> Iterator[None]:
    """As long as it lasts, the tower embeds the patches that are kept, at their places in a picture of any size."""
    if dropout is not None and dropout.share == 0:
        dropout = None
    if isinstance(visual, VisionTransformer):
        if dropout is None and _grid(visual, pixels_NCHW) == tuple(visual.grid_size):
            yield
            return
        visual._embeds = partial(_embedded, visual, dropout)
        try:
            yield
        finally:
            del visual._embeds
    elif dropout is not None:
        assert _has_dropout(visual), "refused by check_dropout"
        own = visual.trunk.patch_drop
        visual.trunk.patch_drop = _Kept(pixels_NCHW, dropout, visual.trunk.num_prefix_tokens)
        try:
            yield
        finally:
            visual.trunk.patch_drop = own
    else:
        yield


def _embedded(visual: VisionTransformer, dropout: PatchDropout | None, pixels_NCHW: Tensor) -> Tensor:
    """What the tower's first block sees, N (1 + K) W; as open_clip's ``_embeds`` (3.3.0) but for what it leaves out."""
    grid, weight = _grid(visual, pixels_NCHW), visual.conv1.weight
    first_1W, places_PW = _positions(visual, grid).split([1, grid[0] * grid[1]])
    if dropout is None:
        states = visual.conv1(pixels_NCHW).flatten(2).transpose(1, 2)
        places = places_PW
    else:
        kept_NK = kept_patches(pixels_NCHW, len(places_PW), dropout)
        states = F.linear(_gathered(pixels_NCHW, grid, weight.shape[2:], kept_NK), weight.flatten(1))
        places = F.embedding(kept_NK, places_PW)
    states = states + places.to(states.dtype)
    first = visual.class_embedding.to(states.dtype) + first_1W.to(states.dtype)
    states = torch.cat([first.expand(len(states), 1, -1), states], dim=1)
    return visual.ln_pre(visual.patch_dropout(states))


def _grid(visual: VisionTransformer, pixels_NCHW: Tensor) -> Grid:
    height, width = pixels_NCHW.shape[2:]
    return height // visual.patch_size[0], width // visual.patch_size[1]


def _positions(visual: VisionTransformer, grid: Grid) -> Tensor:
    """(1 + P) W: the tower's own for the class token, those of its grid resized as open_clip does when it loads."""
    own, whole = visual.positional_embedding, visual.grid_size
    if grid == tuple(whole):
        return own
    map_1WHW = own[1:].float().unflatten(0, tuple(whole)).permute(2, 0, 1)[None]
    resized = F.interpolate(map_1WHW, grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([own[:1], resized[0].flatten(1).T])


def _gathered(pixels_NCHW: Tensor, grid: Grid, patch: torch.Size, kept_NK: Tensor) -> Tensor:
    """Pixels of the kept patches, N K (C x height x width)."""
    (rows, columns), (height, width) = grid, patch
    inside = pixels_NCHW[:, :, : rows * height, : columns * width]  # the convolution ignores what is left over, too
    patches = inside.unflatten(3, (columns, width)).unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5)
    picture_N1 = torch.arange(len(kept_NK), device=kept_NK.device)[:, None]
    return patches[picture_N1, kept_NK // columns, kept_NK % columns].flatten(2)


class _Kept(nn.Module):
    """In the place of a timm ViT's own layer, behind the embedding, which that tower does not let go of."""

    def __init__(self, pixels_NCHW: Tensor, dropout: PatchDropout, num_prefix: int) -> None:
        super().__init__()
        self._pixels_NCHW, self._dropout, self._num_prefix = pixels_NCHW, dropout, num_prefix

    def forward(self, states_NLW: Tensor) -> Tensor:
        prefix, patches = states_NLW[:, : self._num_prefix], states_NLW[:, self._num_prefix :]
        kept_NK = kept_patches(self._pixels_NCHW, patches.shape[1], self._dropout)
        kept = patches.gather(1, kept_NK[..., None].expand(-1, -1, patches.shape[2]))
        return torch.cat([prefix, kept], dim=1)


def _has_dropout(visual: Any) -> bool:
    """Whether it is a timm tower that asks its layer ``patch_drop`` for the patches to go on with."""
    trunk = getattr(visual, "trunk", None)
    return (
        isinstance(visual, TimmModel)
        and isinstance(trunk, TimmTransformer)
        and type(trunk).forward_features is TimmTransformer.forward_features
    )


def kind(visual: Any) -> str:
    """What an image tower is called in a sentence: the class of timm's own model where there is one."""
    return type(getattr(visual, "trunk", visual)).__name__
