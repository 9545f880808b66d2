"""The identities of infonce and of each of its options, against losses written out pair by pair."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import normalize

from vlp import embeddings, similarity
from vlp.features import Embeddings
from vlp.objectives import base
from vlp.objectives.infonce import Objective
from vlp.similarity import rows
from vlp.types import Batch, UserError

ROWS, WIDTH = 12, 6
PICTURES = [0, 1, 2, 3, 4, 5, 6, 1, 8, 9, 10, 2]  # 1 and 7 show the same, 2 and 11
CAPTIONS = [  # of both views; 0 and 8 share one, 3 and 10 across views, 7 says twice the same
    *[[20, 21, 22, 23, 24, 25, 26, 27, 20, 29, 30, 31]],
    *[[40, 41, 42, 30, 44, 45, 46, 27, 48, 49, 50, 51]],
]


def infonce(**options: Any) -> Objective:
    parsed = base.parse({"name": "infonce", **options})
    assert isinstance(parsed, Objective)
    return parsed


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def embedded(image_ND: Tensor, text_VND: Tensor, scale: Tensor | float = 5.0, local: slice = slice(None)) -> Embeddings:
    """Of rows whose pictures and captions repeat as the tables above say; a text without views is one view."""
    text_VND = text_VND if text_VND.ndim == 3 else text_VND[None]
    return Embeddings(
        image_ND[None],
        text_VND,
        torch.as_tensor(scale, dtype=image_ND.dtype),
        torch.zeros((), dtype=image_ND.dtype),
        picture_N=torch.tensor(PICTURES)[local],
        caption_VN=torch.tensor(CAPTIONS)[: len(text_VND), local],
    )


@pytest.fixture
def example() -> Embeddings:
    image = features(ROWS, WIDTH)
    return embedded(image, normalize(features(2, ROWS, WIDTH, seed=1) + image, dim=-1))


def loss(embedded: Embeddings, **options: Any) -> Tensor:
    return infonce(**options).loss(embedded).total


def logits(e: Embeddings) -> Tensor:
    return e.logit_scale * e.image_ND @ e.text_ND.T


def both(l_NN: Tensor, target_NN: Tensor | None = None, **options: float) -> Tensor:
    """Mean of torch's cross-entropies of both directions; the target are the matching pairs or a distribution."""
    target = torch.arange(len(l_NN)) if target_NN is None else target_NN
    transposed = target if target_NN is None else target_NN.T
    return (F.cross_entropy(l_NN, target, **options) + F.cross_entropy(l_NN.T, transposed, **options)) / 2


def same(e: Embeddings) -> Tensor:
    """Which pairs match by picture or caption, of one caption each."""
    assert e.picture_N is not None
    assert e.caption_VN is not None
    caption_N = e.caption_VN[0]
    return (e.picture_N[:, None] == e.picture_N) | (caption_N[:, None] == caption_N)


# ---- The plain loss


def test_equal_logits_give_ln_b():
    ones = normalize(torch.ones(ROWS, WIDTH), dim=1)
    torch.testing.assert_close(loss(embedded(ones, ones)), torch.tensor(12.0).log())


def test_orthonormal_pairs():
    eye = torch.eye(ROWS)
    torch.testing.assert_close(loss(embedded(eye, eye, 3.0)), torch.log(1 + 11 * torch.tensor(-3.0).exp()))


@pytest.mark.parametrize("most_dense", [0, 1 << 18])
def test_its_row_gradient_is_the_softmax_minus_the_match(monkeypatch, example, most_dense):
    """dL/dL_ij = (P_ij - delta_ij) / B for each direction, so that it sums to 0 over each row."""
    monkeypatch.setattr(similarity, "MOST_DENSE_LOGITS", most_dense)
    # With the texts on the axes, the gradient of the images is that of the logits.
    image = (features(ROWS, ROWS) * 3).requires_grad_()
    value = loss(embedded(image, torch.eye(ROWS, dtype=torch.float64), 1.0))
    (found,) = torch.autograd.grad(value, image)
    eye = torch.eye(ROWS)
    of_rows, of_columns = ((image.softmax(axis) - eye) / ROWS for axis in (1, 0))
    torch.testing.assert_close(found, (of_rows + of_columns) / 2)
    assert of_rows.sum(1).abs().max() < 1e-9


# ---- Label smoothing


@pytest.mark.parametrize("smoothing", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("most_dense", [0, 1 << 18])
def test_smoothing_is_that_of_torch(monkeypatch, example, smoothing, most_dense):
    monkeypatch.setattr(similarity, "MOST_DENSE_LOGITS", most_dense)
    expected = both(logits(example), label_smoothing=smoothing)
    torch.testing.assert_close(loss(example, label_smoothing=smoothing), expected)


def test_smoothing_adds_matching_minus_mean_logit(example):
    every = logits(example)
    expected = loss(example) + 0.3 * (every.diagonal().mean() - every.mean())
    torch.testing.assert_close(loss(example, label_smoothing=0.3), expected)


def test_smoothing_alone_knows_no_labels(example):
    """Linear in the smoothing: at 1, extrapolated, all permutations of the texts have one loss."""

    def at_one(e: Embeddings) -> Tensor:
        return 2 * loss(e, label_smoothing=0.5) - loss(e)

    turned = embedded(example.image_ND, example.text_ND.roll(1, 0))
    torch.testing.assert_close(at_one(turned), at_one(example))
    assert (loss(turned) - loss(example)).abs() > 0.1


def test_align_sums_the_directions(example):
    align = infonce(label_smoothing=0.1, weight=2)
    every = logits(example)
    expected = F.cross_entropy(every, torch.arange(ROWS), label_smoothing=0.1)
    expected = expected + F.cross_entropy(every.T, torch.arange(ROWS), label_smoothing=0.1)
    torch.testing.assert_close(base.combined_loss([align], example).total, expected)


# ---- The hardest negatives


def test_all_negatives_are_the_plain_loss(example):
    torch.testing.assert_close(loss(example, hardest=1.0), loss(example))


def test_one_negative_is_a_softplus(example):
    every = logits(example)
    rivals = every.masked_fill(torch.eye(ROWS).bool(), -torch.inf)
    expected = [F.softplus(rivals.amax(axis) - every.diagonal()).mean() for axis in (0, 1)]
    torch.testing.assert_close(loss(example, hardest=1e-6), sum(expected) / 2)


def test_harder_is_never_more(example):
    """Steps where a further negative enters: 11 of them, at 1/11, 2/11, ... and nowhere between."""
    shares = [n / 11 for n in range(1, 12)]
    found = [loss(example, hardest=share) for share in shares]
    assert all(less < more for less, more in pairwise(found))
    torch.testing.assert_close(loss(example, hardest=0.1), found[1], rtol=0, atol=0)  # ceil(1.1)
    assert len({loss(example, hardest=s).item() for s in (1e-6, 0.05, 1 / 11)}) == 1


def test_the_hardest_are_an_upper_quantile(example):
    every, eye = logits(example), torch.eye(ROWS).bool()

    def direction(l_NN: Tensor) -> Tensor:
        negatives = l_NN[~eye].view(ROWS, -1)
        least = negatives.quantile(0.5, dim=1, interpolation="lower")  # 6 of 11 are not below it
        kept = l_NN.masked_fill(~eye & (l_NN < least[:, None]), -torch.inf)
        return F.cross_entropy(kept, torch.arange(ROWS))

    torch.testing.assert_close(loss(example, hardest=0.5), (direction(every) + direction(every.T)) / 2)


# ---- Duplicates


def test_soft_targets_are_those_of_torch(example):
    """The target as a distribution: each row's matches share it."""
    match = same(example).double()
    assert match.sum() == ROWS + 6
    every = logits(example)
    for smoothing in (0.0, 0.2):
        expected = sum(
            F.cross_entropy(l_NN, m_NN / m_NN.sum(1, keepdim=True), label_smoothing=smoothing)
            for l_NN, m_NN in ((every, match), (every.T, match.T))
        )
        torch.testing.assert_close(loss(example, duplicates="soft", label_smoothing=smoothing), expected / 2)


def test_masked_matches_are_not_there(example):
    """Row by row over what is left, which differs in number; smoothing is spread over that."""
    match, every = same(example), logits(example)
    for smoothing in (0.0, 0.2):
        found = []
        for l_NN, m_NN in ((every, match), (every.T, match.T)):
            for row in range(ROWS):
                left = [row, *(c for c in range(ROWS) if not m_NN[row, c])]
                found.append(F.cross_entropy(l_NN[row, left], torch.tensor(0), label_smoothing=smoothing))
        expected = torch.stack(found).mean()
        torch.testing.assert_close(loss(example, duplicates="masked", label_smoothing=smoothing), expected)


@pytest.mark.parametrize("duplicates", ["masked", "soft"])
def test_without_duplicates_it_is_the_plain_loss(example, duplicates):
    apart = Embeddings(
        example.image_VND,
        example.text_VND,
        example.logit_scale,
        example.logit_bias,
        picture_N=torch.arange(ROWS),
        caption_VN=torch.arange(2 * ROWS).view(2, ROWS),
    )
    for smoothing in (0.0, 0.1):
        expected = loss(apart, label_smoothing=smoothing)
        torch.testing.assert_close(loss(apart, duplicates=duplicates, label_smoothing=smoothing), expected)


def test_a_batch_of_one_picture_has_no_negatives(example):
    """Every row matches every other: masked, nothing is left to tell apart, and the gradient is 0."""
    image = features(ROWS, WIDTH).requires_grad_()
    e = Embeddings(
        image[None], example.text_VND, example.logit_scale, example.logit_bias,
        picture_N=torch.zeros(ROWS, dtype=torch.long), caption_VN=example.caption_VN,
    )  # fmt: skip
    for options in ({}, {"hardest": 0.5}, {"captions": 2}):
        value = loss(e, duplicates="masked", **options)
        (gradient,) = torch.autograd.grad(value, image)
        assert value == 0
        assert not gradient.any()
    uniform = torch.full((ROWS, ROWS), 1 / ROWS, dtype=torch.float64)
    torch.testing.assert_close(loss(e, duplicates="soft"), both(logits(e), uniform))


def test_equal_captions_are_told_by_their_ids():
    """Of whatever rows and views; the same ids in another order are another caption."""
    texts = torch.randint(1, 1000, (2, 4, 7), generator=torch.Generator().manual_seed(0))
    texts[1, 3], texts[0, 2] = texts[0, 1], texts[0, 0].flip(0)
    towers = {"image": torch.ones(4, 1, 3), "text": torch.ones(4, 2, 3)}
    scalars = {"logit_scale": torch.zeros(()), "logit_bias": torch.zeros(())}
    batch = Batch(torch.zeros(1, 4, 3, 2, 2, dtype=torch.uint8), texts, ("",) * 4, ("",) * 4)
    caption_VN = embeddings.embed({**towers, **scalars}, batch).caption_VN
    assert caption_VN is not None
    assert caption_VN.shape == (2, 4)
    found = caption_VN.flatten()
    assert ((found[:, None] == found).sum(1) > 1).nonzero().flatten().tolist() == [1, 7]


# ---- Several captions


def written_out(e: Embeddings, captions: int) -> Tensor:
    """The docstring's formula, pair by pair."""
    every = torch.einsum("id,kjd->ikj", e.image_ND, e.text_VND[:captions]) * e.logit_scale
    total = torch.zeros((), dtype=every.dtype)
    for i, k in product(range(ROWS), range(captions)):
        others = torch.cat([every[i, :, :i], every[i, :, i + 1 :]], 1).exp().sum() / captions
        total += torch.log(every[i, k, i].exp() + others) - every[i, k, i]
        total += torch.logsumexp(every[:, k, i], 0) - every[i, k, i]
    return total / (2 * ROWS * captions)


def test_each_of_several_captions_has_its_own_target(example):
    torch.testing.assert_close(loss(example, captions=2), written_out(example, 2))


def test_one_caption_is_the_plain_loss_to_the_bit(example):
    assert torch.equal(loss(example, captions=1), both(logits(example)))
    assert torch.equal(loss(example, captions=1), loss(embedded(example.image_ND, example.text_ND)))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"hardest": 0.3}, {"duplicates": "masked"}], ids=str)
@pytest.mark.parametrize("captions", [2, 3])
def test_equal_captions_are_one(example, captions, options):
    """Value and gradient; each picture says the same K times."""
    image, text = (x.detach().clone().requires_grad_() for x in (example.image_ND, example.text_ND))
    results = []
    for number in (1, captions):
        e = embedded(image, text.expand(number, -1, -1))
        ids = torch.tensor(CAPTIONS[0]).expand(number, -1)
        e = Embeddings(
            e.image_VND, e.text_VND, e.logit_scale, e.logit_bias, picture_N=e.picture_N, caption_VN=ids
        )  # fmt: skip
        value = loss(e, captions=number, **options)
        results.append([value.detach(), *torch.autograd.grad(value, (image, text))])
    torch.testing.assert_close(results[1], results[0])


def test_the_order_of_captions_does_not_matter(example):
    swapped = example.text_VND.clone()
    swapped[:, ::2] = swapped.flip(0)[:, ::2]
    e = embedded(example.image_ND, swapped)
    torch.testing.assert_close(loss(e, captions=2), loss(example, captions=2))
    # Unlike losses that compare a picture with the k-th captions only.
    apart = [loss(embedded(x.image_ND, view)) for x in (e, example) for view in x.text_VND]
    assert (apart[0] + apart[1] - apart[2] - apart[3]).abs() > 1e-3


@pytest.mark.parametrize("options", [{"captions": 2}, {"captions": 2, "hardest": 0.3}], ids=str)
def test_a_batch_of_one_costs_nothing(options):
    image, text = (features(*shape, seed=7).requires_grad_() for shape in ((1, 1, WIDTH), (2, 1, WIDTH)))
    e = Embeddings(image, text, torch.tensor(3.0, dtype=torch.float64), torch.tensor(0.0))
    value = loss(e, **options)
    assert value == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(value, (image, text)))


# ---- All of them together, in strips, in short precisions, over processes

VARIANTS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"hardest": 0.4},
    {"hardest": 0.4, "label_smoothing": 0.1},
    {"duplicates": "masked"},
    {"duplicates": "masked", "hardest": 0.4},
    {"duplicates": "soft"},
    {"duplicates": "soft", "hardest": 0.4, "label_smoothing": 0.1},
    {"captions": 2},
    {"captions": 2, "label_smoothing": 0.1},
    {"captions": 2, "hardest": 0.4},
    {"captions": 2, "duplicates": "masked"},
    {"captions": 2, "duplicates": "masked", "hardest": 0.4, "label_smoothing": 0.1},
]
variants = pytest.mark.parametrize("options", VARIANTS, ids=str)


def oracle(e: Embeddings, options: dict[str, Any]) -> Tensor:
    """Any variant, one query after the other, over Python lists of what it is compared with."""
    views = options.get("captions", 1)
    assert e.picture_N is not None
    assert e.caption_VN is not None
    pictures = [(i, e.picture_N[i], {int(c) for c in e.caption_VN[:views, i]}, e.image_ND[i]) for i in range(ROWS)]
    texts = [
        (i, e.picture_N[i], {int(e.caption_VN[k, i])}, e.text_VND[k, i]) for i, k in product(range(ROWS), range(views))
    ]
    on = options.get("duplicates", "negatives") != "negatives"
    directions = []
    for queries, candidates, weight in ((pictures, texts, 1 / views), (texts, pictures, 1.0)):
        losses = []
        for i, picture, captions, feature in queries:
            own, matching, negatives = [], [], []
            for j, other, others, feature_there in candidates:
                logit = e.logit_scale * (feature * feature_there).sum()
                if i == j:
                    own.append(logit)
                elif on and (picture == other or captions & others):
                    matching.append(logit)
                else:
                    negatives.append(logit)
            if "hardest" in options:
                number = math.ceil(options["hardest"] * len(negatives) * weight - 1e-9) / weight
                negatives = sorted(negatives, reverse=True)[: round(number)]
            against = [(logit, weight) for logit in negatives]
            groups = [[logit] for logit in own]
            if options.get("duplicates") == "soft":
                groups = [own + matching]
            for positives in groups:
                stand = [*((logit, 1.0) for logit in positives), *against]
                total = sum(w for _, w in stand)
                normaliser = torch.stack([logit + math.log(w) for logit, w in stand]).logsumexp(0)
                e_s = options.get("label_smoothing", 0.0)
                value = normaliser - (1 - e_s) * torch.stack(positives).mean()
                losses.append(value - e_s * sum(w * logit for logit, w in stand) / total)
        directions.append(torch.stack(losses).mean())
    return (directions[0] + directions[1]) / 2


def results(e: Embeddings, inputs: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    value = loss(e, **options)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def inputs_of(example: Embeddings, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    values = (example.image_ND, example.text_VND, example.logit_scale)
    return [x.detach().to(dtype, copy=True).requires_grad_() for x in values]


@variants
def test_any_variant_is_what_its_definition_says(example, options):
    inputs = inputs_of(example)
    e = embedded(*inputs)
    expected = oracle(e, options)
    torch.testing.assert_close(results(e, inputs, options), [expected.detach(), *torch.autograd.grad(expected, inputs)])


@variants
@pytest.mark.parametrize("most_logits", [1, 50, 130])
def test_strips_change_nothing(monkeypatch, example, options, most_logits):
    inputs = inputs_of(example)
    expected = results(embedded(*inputs), inputs, options)
    monkeypatch.setattr(similarity, "MOST_DENSE_LOGITS", 0)
    monkeypatch.setattr(rows, "MOST_LOGITS", most_logits)
    torch.testing.assert_close(results(embedded(*inputs), inputs, options), expected)


def test_strips_are_not_kept_for_backward(example):
    """What a strip computes of its logits is computed again, so memory is that of one strip."""
    kept: list[int] = []
    image, text, scale = inputs_of(example)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        rows.by_rows(lambda l_nC, _: l_nC.exp().sum(1), image, text[0], scale, 2 * ROWS)
        in_strips = max(kept)
        rows.by_rows(lambda l_nC, _: l_nC.exp().sum(1), image, text[0], scale, ROWS * ROWS)
    assert in_strips <= ROWS * WIDTH < ROWS * ROWS == max(kept)


@variants
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_features_have_the_loss_of_their_values(example, options, dtype):
    """Also under autocast and at the largest scale, where rounding a logit to bf16 would move it by 0.2."""
    image, text, _ = inputs_of(example, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(embedded(image, text, torch.tensor(100.0)), **options)
    assert found.dtype == torch.float32
    expected = loss(embedded(image.double(), text.double(), 100.0), **options)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def rank_results(rank: int, world: int, example: Embeddings, options: dict[str, Any]) -> list[Tensor]:
    local = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    image, text, scale = inputs_of(example, torch.float32)
    mine = [x.detach().clone().requires_grad_() for x in (image[local], text[:, local], scale)]
    return results(embedded(*mine, local=local), mine, options)


def all_variants(rank: int, world: int, example: Embeddings) -> list[list[Tensor]]:
    return [rank_results(rank, world, example, options) for options in VARIANTS]


@pytest.mark.parametrize("world", [2, 4])
def test_any_variant_is_the_same_on_any_number_of_processes(run_ranks, example, world):
    """Loss and gradients, with pictures and captions that repeat on other processes."""
    found = run_ranks(all_variants, world, example)
    for number, options in enumerate(VARIANTS):
        expected = rank_results(0, 1, example, options)
        value, image, text, scale = zip(*(of_rank[number] for of_rank in found), strict=True)
        # The mean over processes is the loss, so the sum of their gradients is W times its gradient.
        joined = [torch.stack(value).mean(), torch.cat(image) / world, torch.cat(text, 1) / world, sum(scale) / world]
        torch.testing.assert_close(joined, expected, rtol=1e-5, atol=1e-6, msg=lambda m, o=options: f"{o}: {m}")


# ---- Recipes


def test_what_is_counted_how_stands_in_the_log():
    lines = {name: infonce(duplicates=name).notes() for name in ("negatives", "masked", "soft")}
    assert lines["negatives"] == infonce().notes()
    assert "count as negatives" in lines["negatives"][0]
    assert len({tuple(line) for line in lines.values()}) == 3


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, set()),
        ({"captions": 3}, {"text_views:3"}),
        ({"duplicates": "soft"}, {"picture_ids", "caption_ids"}),
        ({"captions": 2, "duplicates": "masked"}, {"picture_ids", "caption_ids", "text_views:2"}),
    ],
)
def test_needs(options, needs):
    assert infonce(**options).needs == {"image", "text"} | needs


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"hardest": 0.0}, "hardest"),
        ({"hardest": 1.1}, "hardest"),
        ({"captions": 0}, "captions"),
        ({"duplicates": "positives"}, "duplicates"),
        ({"captions": 2, "duplicates": "soft"}, "use masked"),
    ],
)
def test_what_makes_no_sense_is_refused_by_one_sentence(options, word):
    with pytest.raises(UserError, match=word) as refusal:
        infonce(**options)
    assert "\n" not in str(refusal.value)
