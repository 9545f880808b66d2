"""The processes that evaluate one set together: each takes a share of its inputs, and of its scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from vlp import distributed
from vlp.types import UserError

T = TypeVar("T")
Things = TypeVar("Things", bound="Sequence[Any] | Tensor")


@dataclass(frozen=True)
class Team:
    """``world`` processes, of which this is number ``rank``. What one of them gathers or sums, all have to."""

    rank: int = 0
    world: int = 1

    def share(self, things: Things) -> Things:
        """Every ``world``-th of ``things``, so that neighbours, which cost alike, go to different processes.

        All of them where they are fewer than processes.
        """
        return things if len(things) < self.world else cast(Things, things[self.rank :: self.world])

    def gather(self, work: Callable[[], Tensor], total: int) -> Tensor:
        """The rows of all ``total`` things in their order, of ``work``, which gives those of this process's `share`.

        Raises:
            UserError: that of ``work`` on any process, on all of them.
        """
        if self.world == 1:
            return work()
        rows, sentence = None, ""
        try:
            rows = work()
        except UserError as error:
            sentence = str(error)
        distributed.fail_together(sentence)
        assert rows is not None
        if total < self.world:  # everybody has them all
            return rows
        most = -(-total // self.world)
        padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
        everyone = distributed.gather_rows(padded).unflatten(0, (self.world, most))
        return everyone.transpose(0, 1).flatten(0, 1)[:total]

    def sum(self, counts: Tensor) -> None:
        """Replace ``counts`` by their sum over the processes."""
        if self.world > 1:
            distributed.sum_over_ranks(counts)

    def once(self, work: Callable[[], T]) -> T:
        """What ``work`` gives on the first process, on all of them; the others wait for it.

        Raises:
            UserError: that of ``work``, on all processes.
        """
        if self.world == 1:
            return work()
        found: T | None = None
        with distributed.failing_together():
            if self.rank == 0:
                found = work()
        return distributed.from_all_ranks(found)[0]


ALONE = Team()


def everyone() -> Team:
    """All processes of the launch; this one alone where there is no other."""
    return Team(distributed.rank(), distributed.world_size())
