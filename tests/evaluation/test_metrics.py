import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp.evaluation import metrics


def features_for(scores_IT: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features whose dot products are the given score matrix (pictures in rows, texts in columns)."""
    return torch.tensor(scores_IT), torch.eye(len(scores_IT[0]))


def test_hand_computed_case_with_several_captions():
    # Pictures A, B, C; captions a1 a2 of A, b1 of B, c1 c2 c3 of C.
    scores = [
        # a1   a2   b1   c1   c2   c3
        [0.9, 0.1, 0.5, 0.2, 0.3, 0.4],  # A: best own 0.9, nothing above          -> rank 1
        [0.8, 0.7, 0.6, 0.5, 0.9, 0.1],  # B: own 0.6; a1 a2 c2 above              -> rank 4
        [0.5, 0.4, 0.1, 0.3, 0.2, 0.35],  # C: best own 0.35; a1 a2 above           -> rank 3
    ]
    # a1: A .9 first -> 1. a2: own .1, B .7 and C .4 above -> 3. b1: own .6 first -> 1.
    # c1: own .3, B .5 above -> 2. c2: own .2, A .3 and B .9 above -> 3. c3: own .35, A .4 above -> 2.
    image_ND, text_ND = features_for(scores)
    ranks = metrics.retrieval_ranks(image_ND, text_ND, torch.tensor([0, 0, 1, 2, 2, 2]))

    assert ranks.image_to_text.rank_N.tolist() == [1, 4, 3]
    assert ranks.text_to_image.rank_N.tolist() == [1, 3, 1, 2, 3, 2]
    assert ranks.image_to_text.recall(1) == pytest.approx(1 / 3)
    assert ranks.image_to_text.recall(3) == pytest.approx(2 / 3)
    assert ranks.image_to_text.recall(5) == 1
    assert ranks.text_to_image.recall(1) == pytest.approx(2 / 6)
    assert ranks.text_to_image.recall(2) == pytest.approx(4 / 6)
    assert ranks.image_to_text.mean() == pytest.approx(8 / 3)
    assert ranks.image_to_text.median() == 3
    assert ranks.text_to_image.median() == 2
    assert ranks.tie_rate() == 0


def test_median_rank_is_rounded_down_between_two_ranks():
    ranks = metrics.Ranks(torch.tensor([1, 2, 5, 9]), torch.zeros(4, dtype=torch.bool))
    assert ranks.median() == math.floor(np.median([0, 1, 4, 8])) + 1 == 3


def full_matrix_ranks(image_ND, text_ND, image_of_text):
    """The definition, a query at a time, on the full score matrix."""
    scores = (image_ND.double() @ text_ND.double().T).float().numpy()
    owner = np.asarray(image_of_text)
    to_text, to_image = [], []
    for i in range(len(image_ND)):
        own = owner == i
        to_text.append(1 + int((scores[i, ~own] >= scores[i, own].max()).sum()))
    for t in range(len(text_ND)):
        wrong = np.arange(len(image_ND)) != owner[t]
        to_image.append(1 + int((scores[wrong, t] >= scores[owner[t], t]).sum()))
    return to_text, to_image


@settings(max_examples=60, deadline=None)
@given(
    captions=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    seed=st.integers(0, 2**31),
    tile=st.sampled_from([1, 3, 7, 2048]),
    coarse=st.booleans(),
)
def test_tiles_agree_with_the_full_matrix(captions, seed, tile, coarse):
    generator = torch.Generator().manual_seed(seed)
    image_of_text = [i for i, count in enumerate(captions) for _ in range(count)]
    order = torch.randperm(len(image_of_text), generator=generator)
    image_of_text = torch.tensor(image_of_text)[order]
    draw = (
        (lambda n: torch.randint(-1, 2, (n, 3), generator=generator).float())
        if coarse
        else (lambda n: F.normalize(torch.randn(n, 8, generator=generator), dim=1))
    )  # coarse features make many ties
    image_ND, text_ND = draw(len(captions)), draw(len(image_of_text))

    ranks = metrics.retrieval_ranks(image_ND, text_ND, image_of_text, tile=tile)

    to_text, to_image = full_matrix_ranks(image_ND, text_ND, image_of_text)
    assert ranks.image_to_text.rank_N.tolist() == to_text
    assert ranks.text_to_image.rank_N.tolist() == to_image


def test_order_of_pictures_and_captions_does_not_matter():
    generator = torch.Generator().manual_seed(1)
    image_of_text = torch.arange(40) % 15
    image_ND, text_ND = torch.randn(15, 6, generator=generator), torch.randn(40, 6, generator=generator)
    images, texts = torch.randperm(15, generator=generator), torch.randperm(40, generator=generator)
    place = images.argsort()

    plain = metrics.retrieval_ranks(image_ND, text_ND, image_of_text)
    mixed = metrics.retrieval_ranks(image_ND[images], text_ND[texts], place[image_of_text[texts]])

    assert torch.equal(plain.image_to_text.rank_N[images], mixed.image_to_text.rank_N)
    assert torch.equal(plain.text_to_image.rank_N[texts], mixed.text_to_image.rank_N)


@pytest.mark.parametrize("width", [3, 128, 192])
@pytest.mark.parametrize("num_images", [1, 2, 37])
def test_a_collapsed_model_ranks_last_and_ties_everywhere(width, num_images):
    # In fp32, the product of these shapes gives equal pairs scores that differ in the last bit.
    row = F.normalize(torch.randn(1, width, generator=torch.Generator().manual_seed(width)), dim=1)
    image_of_text = torch.arange(77) % num_images
    ranks = metrics.retrieval_ranks(row.repeat(num_images, 1), row.repeat(77, 1), image_of_text, tile=20)

    own = torch.bincount(image_of_text)
    assert torch.equal(ranks.image_to_text.rank_N, 77 - own + 1)
    assert ranks.text_to_image.rank_N.tolist() == [num_images] * 77
    assert ranks.tie_rate() == (0 if num_images == 1 else 1)


def test_a_tie_with_another_own_caption_is_no_tie():
    image_ND, text_ND = features_for([[0.5, 0.5, 0.1], [0.2, 0.2, 0.9]])
    ranks = metrics.retrieval_ranks(image_ND, text_ND, torch.tensor([0, 0, 1]))
    assert ranks.image_to_text.rank_N.tolist() == [1, 1]
    assert ranks.tie_rate() == 0


def test_nan_counts_against_the_model():
    image_ND, text_ND = features_for([[0.9, 0.1], [0.1, 0.9]])
    broken = torch.full_like(image_ND, math.nan)
    ranks = metrics.retrieval_ranks(broken, text_ND, torch.tensor([0, 1]))
    assert ranks.image_to_text.recall(1) == ranks.text_to_image.recall(1) == 0
    labels = metrics.label_ranks(broken, text_ND, torch.tensor([0, 1]))
    assert labels.recall(1) == 0


@pytest.mark.parametrize("tile", [1, 4, 100])
def test_label_ranks_count_classes_at_least_as_good(tile):
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.4, 0.4, 0.1], [0.1, 0.2, 0.3]])
    ranks = metrics.label_ranks(scores, torch.eye(3), torch.tensor([2, 0, 2]), tile=tile)
    assert ranks.rank_N.tolist() == [2, 2, 1]
    assert ranks.tied_N.tolist() == [False, True, False]


def test_mean_per_class_passes_over_absent_classes():
    right = torch.tensor([True, False, True, True])
    mean, share = metrics.mean_per_class(right, torch.tensor([0, 0, 0, 2]), num_classes=4)
    assert mean == pytest.approx((2 / 3 + 1) / 2)
    assert share[0] == pytest.approx(2 / 3)
    assert share[2] == 1
    assert math.isnan(share[1])
    assert math.isnan(share[3])


def test_chance_of_any_of_by_hand():
    # Of 4 texts one picture owns 1, another 3. One draw: 1/4 and 3/4. Two draws: 1/2, and 1 - 0 = 1.
    assert metrics.chance_any_of([1, 3], 4, 1) == pytest.approx(1 / 2)
    assert metrics.chance_any_of([1, 3], 4, 2) == pytest.approx(3 / 4)
    assert metrics.chance_any_of([1, 3], 4, 10) == 1
    assert metrics.chance_any_of([1] * 1000, 1000, 5) == pytest.approx(0.005)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_chance_agrees_with_random_features(k):
    generator = torch.Generator().manual_seed(k)
    image_of_text = torch.tensor([i for i in range(30) for _ in range(1 + i % 4)])
    chance = metrics.chance_any_of(torch.bincount(image_of_text).tolist(), len(image_of_text), k)
    recalls = [
        metrics.retrieval_ranks(
            F.normalize(torch.randn(30, 8, generator=generator), dim=1),
            F.normalize(torch.randn(len(image_of_text), 8, generator=generator), dim=1),
            image_of_text,
        ).image_to_text.recall(k)
        for _ in range(300)
    ]
    # Standard error below 0.004: sqrt(0.25 / (300 * 30)) = 0.0053 at most.
    assert np.mean(recalls) == pytest.approx(chance, abs=0.016)


def test_chance_of_a_large_set_is_finite():
    assert metrics.chance_any_of([5] * 5000, 25000, 10) == pytest.approx(0.002, rel=2e-3)


def test_margins_within_rounding_are_ties_and_nan_stays():
    true_N = torch.tensor([0.3, 0.3, 0.3, 0.3, math.nan])
    wrong_N = torch.tensor([0.3 - 2e-7, 0.3 + 2e-7, 0.3 - 2e-6, 0.3 + 2e-6, 0.3])
    margin = metrics.margins(true_N, wrong_N).tolist()
    assert margin[:2] == [0, 0]
    assert margin[2:4] == pytest.approx([2e-6, -2e-6], rel=0.1)
    assert math.isnan(margin[4])
