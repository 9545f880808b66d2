"""The momentum twin: a slowly moving copy of the encoders, and a queue of its features (MoCo, He et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlp import sharded
from vlp.ema import lerp
from vlp.encoders.packing import shapes_of
from vlp.encoders.two_tower import TwoTower
from vlp.features import Features, Queue
from vlp.types import Batch, UserError


def check_queue(queue_size: int, global_batch: int, num_samples: int | None = None) -> None:
    """Refuse a queue that would make what is compared with depend on the order of rows, or false.

    A step must leave it as a whole. Queue and batch together must not exceed the data set of ``num_samples``, where
    that is known: a pair would stand in the queue as a negative of itself.

    Raises:
        UserError: with the size to write instead.
    """
    if queue_size % global_batch:
        raise UserError(
            f"objectives: queue_size {queue_size} is no multiple of train.global_batch_size {global_batch}: "
            f"write {max(1, queue_size // global_batch) * global_batch}"
        )
    if num_samples is not None and queue_size and queue_size + global_batch > num_samples:
        most = max(0, num_samples // global_batch - 1) * global_batch
        raise UserError(
            f"objectives: queue_size {queue_size} and a batch of {global_batch} exceed the data set of {num_samples} "
            f"samples, so that pairs would be negatives of themselves: write at most {most}"
        )


class Momentum:
    """``twin = decay * twin + (1 - decay) * model`` after each step, and the last ``queue_size`` pairs of its features.

    The twin is in evaluation mode: no dropout, running statistics of batch norms. Every process holds the same twin
    and the same queue, whose order does not depend on how many there are, but for rows of the same step.

    Args:
        wanted: tokens to deliver, as `TwoTower.forward` names them.
        queue_size: pairs, a multiple of the global batch; 0 for no queue.
    """

    def __init__(
        self, model: TwoTower, decay: float, queue_size: int, wanted: frozenset[str], global_batch: int
    ) -> None:
        check_queue(queue_size, global_batch)
        self.decay = decay
        self.twin = model.copied().requires_grad_(False).eval()
        self.twin.captioner = self.twin.fusion = None
        self._wanted = wanted
        width = model.openclip_config["model_cfg"]["embed_dim"]
        self._image_QD, self._text_QD = (torch.zeros(queue_size, width, device=model.device) for _ in range(2))
        self._seen = 0  # rows that ever entered

    @property
    def queue(self) -> Queue | None:
        """The rows there are; they keep their places when others come."""
        size = len(self._image_QD)
        if size == 0:
            return None
        filled = min(self._seen, size)
        return Queue(self._image_QD[:filled], self._text_QD[:filled])

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """The twin's outputs for the last view of each picture and the first caption."""
        lengths_VN = batch.text_length_VN
        shapes = None if lengths_VN is None else shapes_of(lengths_VN[0])
        return self.twin(batch.image_VNCHW[-1:], batch.text_VNL[:1], self._wanted, text_shapes=shapes)

    @torch.no_grad()
    def update(self, model: TwoTower, features: Features) -> None:
        """After an optimiser step: the twin follows ``model``; the global batch's ``features`` enter the queue."""
        lerp(_each_once(self.twin.clip), _each_once(model.clip), 1 - self.decay)
        if len(self._image_QD):
            start = self._seen % len(self._image_QD)
            # Of an update that was left out, too: one row that is not finite would be in the losses of many steps.
            self._image_QD[start : start + len(features.image_BD)] = features.image_BD.nan_to_num(0.0, 0.0, 0.0)
            self._text_QD[start : start + len(features.text_BD)] = features.text_BD.nan_to_num(0.0, 0.0, 0.0)
            self._seen += len(features.image_BD)

    def state(self) -> dict[str, Tensor]:
        """All that a checkpoint needs, under names that no weight has."""
        twin = {f"twin/{name}": value for name, value in _each_once(self.twin.clip).items()}
        return twin | {
            "queue/image": self._image_QD,
            "queue/text": self._text_QD,
            "queue/seen": torch.tensor(self._seen),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """In place, of whole tensors."""
        weights = _each_once(self.twin.clip)
        sharded.fill(weights, {name: state[f"twin/{name}"] for name in weights})
        self._image_QD.copy_(state["queue/image"])
        self._text_QD.copy_(state["queue/text"])
        self._seen = int(state["queue/seen"])


def _each_once(module: nn.Module) -> dict[str, Tensor]:
    """What is saved of ``module``; a tied weight, which has several names, under the first alone."""
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    tied = names - {name for name, _ in module.named_parameters()}
    return {name: value for name, value in module.state_dict().items() if name not in tied}
