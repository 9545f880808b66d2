import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from vlp.evaluation import twins
from vlp.evaluation.tasks.base import Category, SetEmbeddings
from vlp.evaluation.twins import Twin, TwinTask


class Task(TwinTask):
    """Twins without files: their features are given."""

    def __init__(self, pairs, tables=None):
        self.name = "made"
        self.twins = pairs
        self.tables = tables or {}
        self.images = [None] * (1 + max(i for twin in pairs for i in twin.images))
        self.texts = [""] * (1 + max(t for twin in pairs for t in twin.texts))

    @staticmethod
    def detects(directory):
        return False


def embeddings_with_scores(*tables):
    """Features of one twin a table, whose scores are table[image][text]: pictures are unit vectors of their own."""
    num_images = 2 * len(tables)
    image_ND, text_ND = torch.eye(num_images), torch.zeros(num_images, num_images)
    for number, table in enumerate(tables):
        block = slice(2 * number, 2 * number + 2)
        text_ND[block, block] = torch.tensor(table).T
    return SetEmbeddings(image_ND, text_ND, 10.0)


def plain(number):
    return [Twin((2 * i, 2 * i + 1), (2 * i, 2 * i + 1)) for i in range(number)]


ALL_RIGHT = [[0.9, 0.1], [0.2, 0.8]]
TEXT_ONLY = [[0.9, 0.8], [0.1, 0.2]]  # both captions prefer the first picture
IMAGE_ONLY = [[0.9, 0.1], [0.8, 0.2]]  # both pictures prefer the first caption
WRONG = [[0.1, 0.9], [0.8, 0.2]]
TIED = [[0.5, 0.5], [0.5, 0.5]]


def test_the_three_scores_by_hand():
    scores = Task(plain(5)).score(embeddings_with_scores(ALL_RIGHT, TEXT_ONLY, IMAGE_ONLY, WRONG, TIED))
    assert scores.metrics == {"text_acc": 2 / 5, "image_acc": 2 / 5, "acc": 1 / 5}
    assert scores.chance == {"text_acc": 1 / 4, "image_acc": 1 / 4, "acc": 1 / 6}
    assert scores.log == {"made/text_score": 2 / 5, "made/image_score": 2 / 5, "made/group_score": 1 / 5}
    assert scores.tie_rate == 1 / 5
    assert scores.details["text_margin"] == pytest.approx([0.6, 0.1, -0.6, -0.8, 0])
    assert scores.details["image_margin"] == pytest.approx([0.7, -0.6, 0.1, -0.7, 0])
    assert scores.metrics.keys() == scores.chance.keys() == scores.labels.keys() == scores.intervals.keys()
    low, high = scores.intervals["text_acc"]
    assert 0 <= low < 2 / 5 < high <= 1


def test_chance_is_what_random_orders_get():
    orders = [torch.tensor(order).float().view(2, 2).tolist() for order in itertools.permutations(range(4))]
    metrics = Task(plain(24)).score(embeddings_with_scores(*orders)).metrics
    assert metrics == pytest.approx(
        {"text_acc": twins.CHANCE["text"], "image_acc": 1 / 4, "acc": twins.CHANCE["group"]}
    )


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_one_tie_or_one_nan_of_the_four_scores_costs_the_point(place):
    table = [[0.5, 0.1], [0.1, 0.5]]
    table[place[0]][place[1]] = 0.5 if place[0] != place[1] else 0.1
    scores = Task(plain(1)).score(embeddings_with_scores(table))
    assert set(scores.metrics.values()) == {0}
    assert scores.tie_rate == 2 / 4
    assert scores.intervals == {}  # of a single twin
    table[place[0]][place[1]] = math.nan
    assert set(Task(plain(1)).score(embeddings_with_scores(table)).metrics.values()) == {0}


def test_a_constant_model_scores_zero_whatever_its_features():
    # Features whose dot product is not exact: equal pairs must tie all the same.
    feature = F.normalize(torch.linspace(0.1, 1, 333), dim=0)
    scores = Task(plain(50)).score(SetEmbeddings(feature.repeat(100, 1), feature.repeat(100, 1), 10.0))
    assert set(scores.metrics.values()) == {0}
    assert scores.tie_rate == 1


def test_the_order_of_a_twin_and_of_the_twins_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    image_ND, text_ND = (F.normalize(torch.randn(60, 4, generator=generator), dim=1) for _ in range(2))
    found = SetEmbeddings(image_ND, text_ND, 10.0)
    straight = [Twin((2 * i, 2 * i + 1), (2 * i, 2 * i + 1), "ab"[i % 2]) for i in range(30)]
    swapped = [Twin(twin.images[::-1], twin.texts[::-1], twin.category) for twin in straight]
    tables = {"tag": [twin.category for twin in straight]}
    expected = Task(straight, tables).score(found)
    assert 0 < expected.metrics["acc"] < 1
    assert Task(swapped, tables).score(found) == expected
    reverse = Task(straight[::-1], {"tag": tables["tag"][::-1]}).score(found)
    assert (reverse.metrics, reverse.tie_rate) == (expected.metrics, expected.tie_rate)
    # Swapped on one side only it is another question.
    crossed = [Twin(twin.images, twin.texts[::-1]) for twin in straight]
    assert Task(crossed).score(found).metrics != expected.metrics


def test_pictures_and_captions_may_be_shared():
    pairs = [Twin((0, 1), (0, 1)), Twin((1, 0), (1, 0))]
    scores = Task(pairs).score(embeddings_with_scores(ALL_RIGHT))
    assert scores.metrics["acc"] == 1


def test_tables_have_a_row_a_category_and_score():
    tables = {"tag": ["object", "object", "", "relation", "object"]}
    rows = (
        Task(plain(5), tables)
        .score(embeddings_with_scores(ALL_RIGHT, TEXT_ONLY, IMAGE_ONLY, ALL_RIGHT, WRONG))
        .categories
    )
    assert [(row.table, row.name, row.number, row.score, row.chance) for row in rows] == [
        ("tag, text score", "object", 3, 2 / 3, 1 / 4),
        ("tag, text score", "relation", 1, 1, 1 / 4),
        ("tag, image score", "object", 3, 1 / 3, 1 / 4),
        ("tag, image score", "relation", 1, 1, 1 / 4),
        ("tag, group score", "object", 3, 1 / 3, 1 / 6),
        ("tag, group score", "relation", 1, 1, 1 / 6),
    ]
    assert isinstance(rows[0], Category)
    assert math.isnan(rows[1].interval[0])
    assert rows[0].interval[0] < 2 / 3 <= rows[0].interval[1]


def test_agrees_with_the_published_definition_on_random_scores():
    """The three conditions of the paper's section 3, written out on single numbers."""
    generator = torch.Generator().manual_seed(1)
    tables = torch.randint(0, 6, (200, 2, 2), generator=generator).float()  # few values, so that some tie
    right = Task(plain(200)).score(embeddings_with_scores(*tables.tolist()))
    text = image = group = 0
    for (c0_i0, c1_i0), (c0_i1, c1_i1) in tables.tolist():
        prefers_caption = c0_i0 > c1_i0 and c1_i1 > c0_i1
        prefers_picture = c0_i0 > c0_i1 and c1_i1 > c1_i0
        text, image, group = (
            text + prefers_caption,
            image + prefers_picture,
            group + (prefers_caption and prefers_picture),
        )
    assert right.metrics == {"text_acc": text / 200, "image_acc": image / 200, "acc": group / 200}
    assert 0.1 < right.tie_rate < 0.3
