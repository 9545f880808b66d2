from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from vlp.data.prefetch import to_device
from vlp.types import Batch, Skipped


def batch(number: int, rows: int = 4) -> Batch:
    pictures = torch.full((rows, 3, 64, 64), number, dtype=torch.uint8)
    return Batch(
        pictures.contiguous(memory_format=torch.channels_last)[None],
        torch.full((1, rows, 8), number),
        tuple(f"{number}-{row}" for row in range(rows)),
        ("caption",) * rows,
        (Skipped("truncated picture", f"{number}"),),
    )


def test_batches_arrive_whole_and_in_order() -> None:
    arrived = list(to_device(map(batch, range(5)), "cpu"))
    for number, one in enumerate(arrived):
        assert torch.equal(one.image_NCHW, batch(number).image_NCHW)
        assert torch.equal(one.text_NL, batch(number).text_NL)
        assert (one.keys, one.captions, one.skipped) == (
            batch(number).keys,
            batch(number).captions,
            batch(number).skipped,
        )
    assert len(arrived) == 5


def test_what_is_added_on_the_host_stays_there() -> None:
    def measured(batch: Batch) -> Batch:
        assert batch.text_VNL.device.type == "cpu"
        return replace(batch, text_length_VN=(batch.text_VNL != 0).sum(-1))

    for number, one in enumerate(to_device(map(batch, range(2)), "meta", measured)):
        assert one.text_VNL.is_meta
        assert one.text_length_VN is not None
        assert one.text_length_VN.tolist() == [[8 if number else 0] * 4]


def test_nothing_is_read_ahead_and_errors_pass_through() -> None:
    read = []

    def batches() -> Iterator[Batch]:
        for number in range(3):
            read.append(number)
            yield batch(number)
        raise ValueError("the shard ended")

    arriving = to_device(batches(), torch.device("cpu"))
    assert read == []
    for number in range(3):
        next(arriving)
        assert read == list(range(number + 1))
    with pytest.raises(ValueError, match="the shard ended"):
        next(arriving)


def test_the_source_is_closed_with_it() -> None:
    closed = []

    def batches() -> Iterator[Batch]:
        try:
            yield batch(0)
        finally:
            closed.append(True)

    arriving = to_device(batches(), "cpu")
    next(arriving)
    arriving.close()  # type: ignore[attr-defined]
    assert closed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_on_a_stream_of_their_own_are_complete_when_used() -> None:
    """Work is queued between the batches, and freed memory would be given to later ones too early."""
    pinned = []
    for number in range(30):
        one = batch(number, rows=256)
        pinned.append(Batch(one.image_VNCHW.pin_memory(), one.text_VNL.pin_memory(), one.keys, one.captions))
    heavy = torch.randn(2048, 2048, device="cuda")
    sums = []
    for one in to_device(iter(pinned), "cuda"):
        assert one.image_NCHW.is_cuda
        assert one.text_NL.is_cuda
        for _ in range(5):
            heavy = heavy @ heavy / 2048
        sums.append((one.image_NCHW.float().mean(), one.text_NL.float().mean()))
        del one
    for number, (picture, text) in enumerate(sums):
        assert picture.item() == number
        assert text.item() == number
