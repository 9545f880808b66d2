"""Features of all pictures that can be decoded, from wherever they are read; of the others, why they have none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.data.ahead import pictures_ahead
from vlp.data.samples import BadSample
from vlp.evaluation.embed import Encoder
from vlp.types import UserError

Item = TypeVar("Item")


def features_where_possible(
    model: Encoder, items: Iterable[Item], read: Callable[[Item], bytes], batch_size: int, threads: int
) -> Iterator[tuple[Item, np.ndarray | BadSample]]:
    """Each item with its L2-normalised fp32 feature D, in their order; a batch is read and decoded ahead.

    The model must be in evaluation mode.

    Args:
        read: the bytes of an item's picture, or a BadSample; called in ``threads``.

    Raises:
        UserError: the model's features are not finite.
    """
    for batch in pictures_ahead(model.eval_transform, items, read, batch_size, threads):
        good = [picture for _, picture in batch if isinstance(picture, Tensor)]
        features = iter(picture_features(model, torch.stack(good)) if good else [])
        for item, picture in batch:
            yield item, (next(features) if isinstance(picture, Tensor) else picture)


def picture_features(model: Encoder, image_NCHW: Tensor) -> np.ndarray:
    """L2-normalised fp32 features ND of uint8 pictures.

    Raises:
        UserError: they are not finite.
    """
    with torch.no_grad():
        feature_ND = model.encode_image(image_NCHW.to(model.device)).float()
    if not feature_ND.isfinite().all():
        raise UserError("the model's features are not finite: its weights have diverged, take an earlier checkpoint")
    return np.asarray(F.normalize(feature_ND, dim=1).cpu().numpy())
