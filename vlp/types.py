"""The nouns that every part of vlp shares.

Legend of the shape suffixes: N rows of this process, B rows of the global batch (B = N x processes), D embedding
width, L tokens, V views of a picture, C channels, H height, W width, K options of a query.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Batch:
    """What the loader hands to the encoders: the rows of this process, every world-th of the global batch.

    image_VNCHW is uint8 (normalised on the device by the encoder), a view of each picture or as many as the objectives
    compare; text_NL holds token ids; captions are the strings that were drawn; skipped names the samples that had to be
    replaced while this batch was made.
    """

    image_VNCHW: Tensor
    text_NL: Tensor
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def image_NCHW(self) -> Tensor:
        """The first view of each picture."""
        return self.image_VNCHW[0]

    def rows(self, start: int, stop: int) -> Batch:
        """The micro-batch of rows ``start`` to ``stop``."""
        return Batch(
            self.image_VNCHW[:, start:stop],
            self.text_NL[start:stop],
            self.keys[start:stop],
            self.captions[start:stop],
        )

    def to(self, device: object) -> Batch:
        """The same batch with its tensors on ``device``."""
        return Batch(
            self.image_VNCHW.to(device, non_blocking=True),  # type: ignore[call-overload]
            self.text_NL.to(device, non_blocking=True),  # type: ignore[call-overload]
            self.keys,
            self.captions,
            self.skipped,
        )


@dataclass(frozen=True)
class Embeddings:
    """What objectives see: L2-normalised fp32 features, this process's rows and the whole global batch.

    Row ``first_row + i`` of ``image_BD`` is row ``i`` of ``image_ND``; the gathered tensors carry the exact gradient.
    ``logit_scale`` is the multiplier itself (exp of the parameter), ``logit_bias`` is 0 where the model has none.
    """

    image_ND: Tensor
    text_ND: Tensor
    image_BD: Tensor
    text_BD: Tensor
    first_row: int
    logit_scale: Tensor
    logit_bias: Tensor


@dataclass(frozen=True)
class Loss:
    """A differentiable scalar and the named scalars that are logged beside it as ``train/NAME``."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
