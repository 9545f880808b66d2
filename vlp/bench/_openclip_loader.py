"""open_clip's own training loader, as its trainer builds it, to hold ours against."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from open_clip import image_transform
from open_clip.tokenizer import SimpleTokenizer

from vlp.data.store import is_remote
from vlp.data.transforms import AugmentOptions, PictureFormat
from vlp.encoders.tokenizer import FastTokenizer

_ENDLESS = 10**9


def why_not(columns: Sequence[str], paths: Sequence[str]) -> str:
    """Why open_clip's loader cannot run on these shards; empty if it can."""
    try:
        importlib.import_module("open_clip_train.data")
    except ImportError as error:
        return f"open_clip's loader lacks {error.name}: pip install {error.name}"
    if any(is_remote(path) for path in paths):
        return "open_clip's loader is compared on local shards only: copy some"
    if "txt" not in columns:
        return "open_clip's loader takes captions from .txt only, which these shards lack"
    return ""


def transform(picture_format: PictureFormat, augment: AugmentOptions) -> Callable[[Any], Any]:
    """open_clip's training transform: crop, colours, normalisation. `not_done` names what it leaves out."""
    colours: dict[str, Any] = {"gray_scale_prob": augment.grey or None}
    if augment.colour_jitter:
        colours |= {"color_jitter": augment.colour_jitter, "color_jitter_prob": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own defaults
        return image_transform(
            picture_format.size,
            is_train=True,
            mean=picture_format.mean,
            std=picture_format.std,
            interpolation=picture_format.interpolation,
            aug_cfg={"scale": augment.crop_scale, **colours},
        )


def not_done(augment: AugmentOptions) -> list[str]:
    """The augmentations of a recipe that open_clip's loader does not know."""
    return [name for name in ("flip", "rotate", "randaugment", "blur") if getattr(augment, name)]


def batches(
    paths: Sequence[str],
    preprocess: Callable[[Any], Any],
    tokenizer: Callable[..., Any],
    batch_size: int,
    workers: int,
    seed: int,
) -> Iterator[tuple[Any, Any]]:
    """An endless stream of (pictures, token ids) from ``get_wds_dataset``; closing it ends the workers.

    A tokenizer of ours is exchanged for open_clip's of the same length.
    """
    from open_clip_train import data as theirs

    if isinstance(tokenizer, FastTokenizer):
        tokenizer = SimpleTokenizer(context_length=tokenizer.context_length)
    # webdataset 1.x marks the end of a shard by an empty sample, on which open_clip 3.3.0 stumbles (KeyError: 'fname').
    if not isinstance(theirs.tar_file_expander, functools.partial):
        theirs.tar_file_expander = functools.partial(theirs.tar_file_expander, eof_value=None)
    # It wants a shard for each worker: a short list is named again.
    repeats = -(-max(1, workers) // len(paths))
    options = SimpleNamespace(
        train_data="::".join([*paths] * repeats),
        train_num_samples=_ENDLESS,
        train_data_upsampling_factors=None,
        seed=seed,
        batch_size=batch_size,
        workers=workers,
        world_size=1,
    )
    loader = theirs.get_wds_dataset(options, preprocess, is_train=True, tokenizer=tokenizer).dataloader
    yield from iter(loader)
