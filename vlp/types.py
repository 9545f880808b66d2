"""The nouns that every part of vlp shares.

Legend of the shape suffixes: N rows of this process, B rows of the global batch (B = N x processes), D embedding
width, L tokens, P patches, V views of a picture or captions of it, Q entries of a queue, C channels, H height, W width,
K options of a query, or hard captions of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import, and `vlp --help` reads this file
    from torch import Tensor


class UserError(ValueError):
    """A mistake the user can mend: one sentence with the key or the file and the cure. The CLI exits with code 2."""


@dataclass(frozen=True)
class Skipped:
    """What could not be used: ``kind`` is counted, ``where`` (``shard: key``) is logged.

    ``samples`` is more than one where a shard, or part of it, is lost.
    """

    kind: str
    where: str
    samples: int = 1


_ON_HOST = ("text_length_VN", "hard_length_KN")


@dataclass(frozen=True)
class Batch:
    """What the loader hands to the encoders: the rows of this process, every world-th of the global batch.

    image_VNCHW is uint8 (normalised on the device by the encoder), text_VNL holds token ids: one view of each picture
    and one caption of it, or as many as the objectives compare. captions are the strings of the first view;
    picture_N tells equal pictures from others (a hash of their bytes), hard_text_KNL holds captions that are nearly
    right but false of the picture (hard_mask_KN is false where there is none), where an objective asks; skipped names
    the samples that had to be replaced while this batch was made. text_length_VN and hard_length_KN, which stay on
    the host, tell how many ids of a text count, where the text tower can spare the others.
    """

    image_VNCHW: Tensor
    text_VNL: Tensor
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
    picture_N: Tensor | None = None
    hard_text_KNL: Tensor | None = None
    hard_mask_KN: Tensor | None = None
    text_length_VN: Tensor | None = None
    hard_length_KN: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def image_NCHW(self) -> Tensor:
        """The first view of each picture."""
        return self.image_VNCHW[0]

    @property
    def text_NL(self) -> Tensor:
        """The first caption of each picture."""
        return self.text_VNL[0]

    def rows(self, start: int, stop: int) -> Batch:
        """The micro-batch of rows ``start`` to ``stop``."""
        return Batch(
            self.image_VNCHW[:, start:stop],
            self.text_VNL[:, start:stop],
            self.keys[start:stop],
            self.captions[start:stop],
            picture_N=None if self.picture_N is None else self.picture_N[start:stop],
            hard_text_KNL=None if self.hard_text_KNL is None else self.hard_text_KNL[:, start:stop],
            hard_mask_KN=None if self.hard_mask_KN is None else self.hard_mask_KN[:, start:stop],
            text_length_VN=None if self.text_length_VN is None else self.text_length_VN[:, start:stop],
            hard_length_KN=None if self.hard_length_KN is None else self.hard_length_KN[:, start:stop],
        )

    def to(self, device: object) -> Batch:
        """The same batch with its tensors on ``device``, but for what stays on the host."""
        from torch import Tensor

        travelling = {name: value for name, value in vars(self).items() if name not in _ON_HOST}
        tensors = {name: value for name, value in travelling.items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})  # type: ignore[call-overload]


@dataclass(frozen=True)
class Loss:
    """A differentiable scalar and the named scalars that are logged beside it as ``train/NAME``."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
