"""The sweep in fp32 changes no rank: against the definition in fp64, where scores tie, nearly tie or are not finite."""

import math
import resource
import sys

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp.evaluation import counting, metrics
from vlp.evaluation.team import Team


def definition(image_ND, text_ND, image_of_text):
    """Ranks of pictures and of texts, a query at a time: NaN and what ties stand before what is right."""
    left, right = image_ND.double().numpy(), text_ND.double().numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        scores = (left[:, None, :] * right[None, :, :]).sum(axis=2).astype(np.float32)
    owner = np.asarray(image_of_text)
    to_text, to_image = [], []
    for i in range(len(left)):
        own = owner == i
        best = scores[i, own].max()  # NaN if one is
        to_text.append(1 + int((~(scores[i, ~own] < best)).sum()))
    for t in range(len(right)):
        wrong = np.arange(len(left)) != owner[t]
        to_image.append(1 + int((~(scores[wrong, t] < scores[owner[t], t])).sum()))
    return to_text, to_image


def unit(*size, seed=0):
    return F.normalize(torch.randn(*size, generator=torch.Generator().manual_seed(seed)), dim=1)


OWNER = torch.arange(45) % 19


def plain():
    return unit(19, 96), unit(45, 96, seed=1)


def trained():
    image_ND = unit(19, 96)
    return image_ND, F.normalize(image_ND[OWNER] + 0.4 * unit(45, 96, seed=1), dim=1)


def collapsed():
    row = unit(1, 96)
    return row.repeat(19, 1), row.repeat(45, 1)


def nearly_collapsed():
    """Scores differ by some 1e-7: more than fp64's rounding, less than fp32's."""
    row = unit(1, 96)
    return row + 1e-8 * unit(19, 96, seed=2), row + 3e-8 * unit(45, 96, seed=3)


def duplicates():
    image_ND, text_ND = trained()
    image_ND[7:12], text_ND[20:24] = image_ND[3], text_ND[2]
    return image_ND, text_ND


def permuted_dimensions():
    """Rows with the same products in another order: equal in fp64 rounded, unequal in fp32."""
    row = unit(1, 96)[0]
    order = torch.stack([torch.randperm(96, generator=torch.Generator().manual_seed(t)) for t in range(45)])
    return row.abs().sort().values[None].repeat(19, 1), torch.ones(45, 96) / 96**0.5 * row.sign()[order]


def cancelling():
    """Large products that cancel: the fp32 error is as large as it gets, and near the scores themselves."""
    sign = torch.tensor([1.0, -1.0]).repeat(48)
    image_ND = (torch.ones(19, 96) + 1e-6 * torch.randn(19, 96, generator=torch.Generator().manual_seed(5))) / 96**0.5
    return image_ND, (sign + 1e-6 * torch.randn(45, 96, generator=torch.Generator().manual_seed(6))) / 96**0.5


def no_unit_length():
    length = torch.logspace(-3, 3, 45)[:, None]
    return 1e4 * unit(19, 96), length * unit(45, 96, seed=1)


def one_nan():
    image_ND, text_ND = trained()
    image_ND[4, 3], text_ND[11, 5] = math.nan, math.nan
    return image_ND, text_ND


def overflowing():
    """Scores beyond fp32's largest number: infinities tie."""
    image_ND, text_ND = trained()
    return 1e25 * image_ND, 1e25 * text_ND


def vanishing():
    """Products below fp32's smallest number."""
    image_ND, text_ND = trained()
    return 1e-25 * image_ND, 1e-15 * text_ND


CASES = [plain, trained, collapsed, nearly_collapsed, duplicates, permuted_dimensions, cancelling]
CASES += [no_unit_length, one_nan, overflowing, vanishing]


@pytest.mark.parametrize("tile", [1, 7, 19, 45, 512])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("dense", [1, counting.DENSE, 10**9])  # pairs one by one, as it comes, blocks only
def test_ranks_are_those_of_the_definition(case, tile, dense, monkeypatch):
    monkeypatch.setattr(counting, "DENSE", dense)
    image_ND, text_ND = case()
    found = metrics.retrieval_ranks(image_ND, text_ND, OWNER, tile=tile)
    to_text, to_image = definition(image_ND, text_ND, OWNER)
    assert found.image_to_text.rank_N.tolist() == to_text
    assert found.text_to_image.rank_N.tolist() == to_image


def test_one_picture_is_always_found():
    found = metrics.retrieval_ranks(unit(1, 8), unit(5, 8, seed=1), torch.zeros(5, dtype=torch.long))
    assert found.image_to_text.rank_N.tolist() == [1]
    assert found.text_to_image.rank_N.tolist() == [1] * 5
    assert found.tie_rate() == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(0, 2**31), st.integers(1, 40), st.sampled_from([1e-9, 1e-8, 1e-7, 1e-6, 1.0]))
def test_near_ties_of_any_width(num_images, seed, width, spread):
    owner = torch.arange(3 * num_images) % num_images
    row = unit(1, width, seed=seed)
    image_ND = row + spread * unit(num_images, width, seed=seed + 1)
    text_ND = row + spread * unit(len(owner), width, seed=seed + 2)
    found = metrics.retrieval_ranks(image_ND, text_ND, owner, tile=8)
    assert (found.image_to_text.rank_N.tolist(), found.text_to_image.rank_N.tolist()) == definition(
        image_ND, text_ND, owner
    )


@pytest.mark.parametrize("width", [1, 64, 512, 4096])
def test_products_in_fp32_stay_within_the_band(width):
    """Also where every rounding goes the same way, which is as bad as it gets."""
    grown = torch.full((1, width), 1 + 2.0**-12)
    cases = [(unit(50, width), unit(60, width, seed=1)), (grown, grown), (unit(9, width).abs(), unit(9, width).abs())]
    for left_ND, right_ND in cases:
        off = (left_ND @ right_ND.T).double() - left_ND.double() @ right_ND.double().T
        one_by_one = torch.zeros(len(left_ND), len(right_ND))
        for d in range(width):
            one_by_one += left_ND[:, d, None] * right_ND[None, :, d]
        worst = torch.maximum(off.abs(), (one_by_one - left_ND.double() @ right_ND.double().T).abs()).max()
        assert worst < counting.error_band(left_ND, right_ND) / counting.SAFETY


def test_lower_precision_elsewhere_does_not_reach_the_sweep():
    image_ND, text_ND = trained()
    expected = metrics.retrieval_ranks(image_ND, text_ND, OWNER)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (image_ND @ text_ND.T).dtype == torch.bfloat16
            found = metrics.retrieval_ranks(image_ND, text_ND, OWNER)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.text_to_image.rank_N, expected.text_to_image.rank_N)


def peak_of(number):
    """How far the memory of this process rises while so many pictures are ranked with as many texts, in MiB."""
    image_ND, text_ND = unit(number, 8), unit(number, 8, seed=1)
    metrics.retrieval_ranks(image_ND[:100], text_ND[:100], torch.arange(100), tile=256)
    before = psutil.Process().memory_info().rss
    metrics.retrieval_ranks(image_ND, text_ND, torch.arange(number), tile=256)
    unit_of_rss = 1 if sys.platform == "darwin" else 1024
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_of_rss - before) / (1 << 20)


def test_memory_does_not_grow_with_the_scores(run_ranks):
    """16 million scores in fp32 would be 64 MiB, in fp64 twice as much."""
    (peak,) = run_ranks(lambda *_: peak_of(4000), 1)
    assert peak < 32


def ranks_of_team(rank, world, case, tile):
    found = metrics.retrieval_ranks(*case(), OWNER, tile=tile, team=Team(rank, world))
    return [(side.rank_N, side.tied_N) for side in (found.image_to_text, found.text_to_image)]


@pytest.mark.parametrize(("world", "tile"), [(2, 7), (4, 512)])  # the second: one tile, three idle processes
def test_processes_count_together(run_ranks, world, tile):
    for case in (trained, duplicates):
        expected = ranks_of_team(0, 1, case, tile)
        for found in run_ranks(ranks_of_team, world, case, tile):
            for (rank, tied), (expected_rank, expected_tied) in zip(found, expected, strict=True):
                assert torch.equal(rank, expected_rank)
                assert torch.equal(tied, expected_tied)
