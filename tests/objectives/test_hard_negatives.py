"""Hard captions: NegCLIP and CompA by hand, identities with CLIP and SigLIP, and what released code gets wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp import distributed
from vlp.features import Embeddings
from vlp.objectives import base
from vlp.similarity import rows

ROWS, NUMBER, WIDTH = 6, 2, 8
SCALE, BIAS = 7.0, -2.0


def features(seed: int, *shape: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, WIDTH, generator=random, dtype=torch.float64), dim=-1)


def embeddings(**others: Any) -> Embeddings:
    """Six pairs with two hard captions each, all of them there."""
    given = {
        "image_VND": features(1, 1, ROWS),
        "text_VND": features(2, 1, ROWS),
        "logit_scale": torch.tensor(SCALE, dtype=torch.float64),
        "logit_bias": torch.tensor(BIAS, dtype=torch.float64),
        "hard_text_KND": features(3, NUMBER, ROWS),
        "hard_mask_KN": torch.ones(NUMBER, ROWS, dtype=torch.bool),
        "caption_VN": torch.arange(ROWS)[None],
        "hard_caption_KN": 100 + torch.arange(NUMBER * ROWS).view(NUMBER, ROWS),
    }
    return Embeddings(**{**given, **others})


def loss(embedded: Embeddings, name: str = "hard_negatives", **options: Any) -> Tensor:
    if name == "hard_negatives" and "number" not in options and embedded.hard_text_KND is not None:
        options["number"] = len(embedded.hard_text_KND)
    return base.parse({"name": name, **options}).loss(embedded).total


def hard_columns(embedded: Embeddings) -> Tensor:
    assert embedded.hard_text_KND is not None
    return embedded.hard_text_KND.transpose(0, 1).flatten(0, 1)


def negclip(image: Tensor, text: Tensor, hard: Tensor, scale: Tensor) -> Tensor:
    """The paper's loss: pictures against [true | hard], captions against pictures."""
    labels = torch.arange(len(image))
    logits = scale * image @ torch.cat([text, hard]).T
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits[:, : len(text)].T, labels)) / 2


@pytest.fixture(params=[1 << 20, 3 * ROWS], ids=["one strip", "strips"], autouse=True)
def _strips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST_LOGITS", request.param)


# ---- NegCLIP


def test_beside_infonce_it_is_negclip():
    embedded = embeddings()
    expected = negclip(embedded.image_ND, embedded.text_ND, hard_columns(embedded), embedded.logit_scale)
    torch.testing.assert_close(loss(embedded, "infonce") + loss(embedded), expected, rtol=1e-12, atol=0)


def test_pairs_and_their_neighbours_make_the_papers_shapes():
    """2N pictures, 4N texts: a batch of which half the rows are neighbours, one hard caption each."""
    one = {"hard_mask_KN": torch.ones(1, ROWS, dtype=torch.bool), "hard_caption_KN": 100 + torch.arange(ROWS)[None]}
    embedded = embeddings(hard_text_KND=features(3, 1, ROWS), **one)
    columns = torch.cat([embedded.text_ND, hard_columns(embedded)])
    assert (embedded.image_ND @ columns.T).shape == (ROWS, 2 * ROWS)
    expected = negclip(embedded.image_ND, embedded.text_ND, hard_columns(embedded), embedded.logit_scale)
    torch.testing.assert_close(loss(embedded, "infonce") + loss(embedded), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{}, {"scope": "own"}, {"form": "sigmoid"}, {"margin": 0.3}], ids=str)
def test_without_hard_captions_it_is_nothing(options):
    embedded = embeddings(hard_mask_KN=torch.zeros(NUMBER, ROWS, dtype=torch.bool))
    inputs = [embedded.image_VND.requires_grad_(), embedded.text_VND.requires_grad_()]
    inputs.append(embedded.hard_text_KND.requires_grad_())
    total = loss(embedded, **options)
    assert total == 0
    gradients = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
    assert all((gradient == 0).all() for gradient in gradients)


def test_hard_captions_that_are_not_there_have_no_say():
    there = torch.ones(NUMBER, ROWS, dtype=torch.bool)
    there[1, 2:] = False
    garbage = torch.where(there[..., None], features(3, NUMBER, ROWS), features(9, NUMBER, ROWS))
    for options in ({}, {"scope": "own"}, {"form": "sigmoid"}):
        expected = loss(embeddings(hard_mask_KN=there), **options)
        assert loss(embeddings(hard_mask_KN=there, hard_text_KND=garbage), **options) == expected
    columns = torch.cat([hard_columns(embeddings())[there.T.flatten()]])
    embedded = embeddings(hard_mask_KN=there)
    expected = negclip(embedded.image_ND, embedded.text_ND, columns, embedded.logit_scale)
    torch.testing.assert_close(loss(embedded, "infonce") + loss(embedded), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scope", ["all", "own"])
def test_the_loss_of_the_captions_is_that_of_clip(scope):
    """No caption meets a hard one: what is added does not depend on the match of another direction."""
    embedded = embeddings()
    text = embedded.text_VND.requires_grad_()
    (found,) = torch.autograd.grad(loss(embedded, scope=scope), text)
    image, hard = embedded.image_ND, hard_columns(embedded)
    logits = SCALE * image @ torch.cat([text[0], hard]).T
    if scope == "own":
        owner = torch.arange(ROWS).repeat_interleave(NUMBER)
        others = owner[None] != torch.arange(ROWS)[:, None]
        logits = torch.cat([logits[:, :ROWS], logits[:, ROWS:].masked_fill(others, -torch.inf)], 1)
    labels = torch.arange(ROWS)
    added = F.cross_entropy(logits, labels) - F.cross_entropy(SCALE * image @ text[0].T, labels)
    (expected,) = torch.autograd.grad(added / 2, text)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_one_pair_whose_hard_caption_is_its_caption_costs_ln_2():
    """As far as nobody knows what they say; equal texts that are known are no negatives."""
    image, text = features(1, 1, 1), features(2, 1, 1)
    unknown: dict[str, Any] = {"hard_mask_KN": torch.ones(1, 1, dtype=torch.bool), "hard_text_KND": text}
    embedded = embeddings(image_VND=image, text_VND=text, caption_VN=None, hard_caption_KN=None, **unknown)
    assert 2 * loss(embedded).item() == pytest.approx(math.log(2), abs=1e-12)
    same = torch.zeros(1, 1, dtype=torch.long)
    known = embeddings(image_VND=image, text_VND=text, caption_VN=same, hard_caption_KN=same, **unknown)
    assert loss(known) == 0


def test_it_never_lowers_the_loss_and_only_pushes_hard_captions_away():
    """With pictures along the axes, component i of a hard caption is its similarity with picture i."""
    eye = torch.eye(WIDTH, dtype=torch.float64)[:ROWS]
    for options in ({}, {"scope": "own"}, {"form": "sigmoid"}, {"margin": 0.2}):
        embedded = embeddings(image_VND=eye[None])
        assert embedded.hard_text_KND is not None
        total = loss(embedded, **options)
        assert total > 0
        (gradient,) = torch.autograd.grad(
            loss(embeddings(image_VND=eye[None], hard_text_KND=embedded.hard_text_KND.requires_grad_()), **options),
            embedded.hard_text_KND,
        )
        assert (gradient >= 0).all()
        assert (gradient.sum((0, 2)) > 0).all()


def test_a_hard_caption_that_another_picture_really_has_is_none_of_that_one():
    """NegCLIP counts it against the match. It stays one of the picture that it was made for."""
    hard_captions = 100 + torch.arange(NUMBER * ROWS).view(NUMBER, ROWS)
    hard_captions[1, 0] = 4  # what picture 4 says
    embedded = embeddings(hard_caption_KN=hard_captions)
    image, text, hard = embedded.image_ND, embedded.text_ND, hard_columns(embedded)
    logits = SCALE * image @ torch.cat([text, hard]).T
    logits[4, ROWS + 0 * NUMBER + 1] = -torch.inf
    labels = torch.arange(ROWS)
    expected = (F.cross_entropy(logits, labels) - F.cross_entropy(logits[:, :ROWS], labels)) / 2
    torch.testing.assert_close(loss(embedded), expected, rtol=1e-12, atol=0)
    assert loss(embedded) < loss(embeddings())
    assert loss(embedded, scope="own") == loss(embeddings(), scope="own")


# ---- CompA


def test_own_scope_by_hand():
    embedded = embeddings()
    image, text, hard = embedded.image_ND, embedded.text_ND, embedded.hard_text_KND
    assert hard is not None
    added = []
    for i in range(ROWS):
        true = (SCALE * text @ image[i]).exp().sum()
        own = (SCALE * hard[:, i] @ image[i]).exp().sum()
        added.append(torch.log((true + own) / true))
    torch.testing.assert_close(loss(embedded, scope="own"), torch.stack(added).mean() / 2, rtol=1e-12, atol=0)


def test_own_scope_is_at_most_all():
    for seed in range(5):
        embedded = embeddings(hard_text_KND=features(seed, NUMBER, ROWS))
        for form in ("softmax", "sigmoid"):
            assert loss(embedded, scope="own", form=form) < loss(embedded, scope="all", form=form)


def test_others_hard_captions_stay_out_where_all_logits_are_negative():
    """The released mask multiplies logits by -100000, which makes negative ones the largest of all."""
    image = features(1, 1, ROWS)
    embedded = embeddings(image_VND=image, text_VND=-image, hard_text_KND=-image.repeat(NUMBER, 1, 1) + 0.01)
    own = loss(embedded, scope="own")
    scores = SCALE * embedded.image_ND @ embedded.text_ND.T
    released = torch.cat([scores, SCALE * embedded.image_ND @ hard_columns(embedded).T], 1)
    others = torch.arange(ROWS).repeat_interleave(NUMBER)[None] != torch.arange(ROWS)[:, None]
    released[:, ROWS:][others] *= -100_000
    labels = torch.arange(ROWS)
    wrong = (F.cross_entropy(released, labels) - F.cross_entropy(scores, labels)) / 2
    assert wrong > 1000
    assert own < math.log(1 + NUMBER * math.exp(2 * SCALE))


# ---- Margin, sigmoid, initialisation


@pytest.mark.parametrize("scope", ["all", "own"])
def test_a_margin_asks_for_that_much_less_similarity(scope):
    embedded = embeddings()
    assert embedded.hard_text_KND is not None
    assert (
        loss(embedded, scope=scope, margin=0.3) > loss(embedded, scope=scope, margin=0.1) > loss(embedded, scope=scope)
    )
    # By hand, with pictures along one axis more, which only hard captions share: their cosines grow by the margin.
    one = torch.ones(1, ROWS, 1, dtype=torch.float64)
    longer = embeddings(
        image_VND=torch.cat([embedded.image_VND, one], -1),
        text_VND=torch.cat([embedded.text_VND, 0 * one], -1),
        hard_text_KND=torch.cat([embedded.hard_text_KND, 0.3 * one.expand(NUMBER, -1, -1)], -1),
    )
    torch.testing.assert_close(loss(embedded, scope=scope, margin=0.3), loss(longer, scope=scope), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scope", ["all", "own"])
def test_beside_siglip_hard_captions_are_further_questions(scope):
    embedded = embeddings()
    image, text, hard = embedded.image_ND, embedded.text_ND, embedded.hard_text_KND
    assert hard is not None
    expected = 0.0
    for i in range(ROWS):
        for j in range(ROWS):
            logit = SCALE * image[i] @ text[j] + BIAS
            expected = expected + F.softplus(-logit if i == j else logit)
            if scope == "all" or i == j:
                expected = expected + F.softplus(SCALE * hard[:, j] @ image[i] + BIAS).sum()
    found = loss(embedded, "siglip") + loss(embedded, scope=scope, form="sigmoid")
    torch.testing.assert_close(found, expected / ROWS, rtol=1e-12, atol=0)


def test_its_value_at_initialisation():
    """All similarities alike: 1/2 ln(1 + K), as the docstring has it."""
    same = torch.zeros(1, ROWS, WIDTH, dtype=torch.float64)
    same[..., 0] = 1
    embedded = embeddings(image_VND=same, text_VND=same, hard_text_KND=same.repeat(NUMBER, 1, 1))
    assert loss(embedded).item() == pytest.approx(math.log(1 + NUMBER) / 2, abs=1e-12)
    assert loss(embedded, scope="own").item() == pytest.approx(math.log(1 + NUMBER / ROWS) / 2, abs=1e-12)


def test_its_parts_count_captions_and_errors():
    embedded = embeddings()
    there = torch.ones(NUMBER, ROWS, dtype=torch.bool)
    there[:, 0] = False
    hard = features(3, NUMBER, ROWS)
    hard[0, 1], hard[0, 2] = embedded.image_ND[1], embedded.text_ND[2]  # more similar, and as similar as the caption
    hard[0, 3:] = -embedded.image_ND[3:]
    parts = base.parse({"name": "hard_negatives"}).loss(embeddings(hard_mask_KN=there, hard_text_KND=hard)).parts
    assert parts["hard_caption_share"].item() == pytest.approx(5 / 6)
    there[1, 1] = False
    asks_for_two = base.parse({"name": "hard_negatives", "number": 2})
    parts = asks_for_two.loss(embeddings(hard_mask_KN=there, hard_text_KND=hard)).parts
    assert parts["hard_caption_share"].item() == pytest.approx(9 / 12)
    assert parts["hard_caption_errors"].item() == pytest.approx(2 / 6)


def test_it_takes_as_many_as_it_asks_for_where_another_objective_asks_for_more():
    three = {"hard_text_KND": features(3, 3, ROWS), "hard_mask_KN": torch.ones(3, ROWS, dtype=torch.bool)}
    three["hard_caption_KN"] = 100 + torch.arange(3 * ROWS).view(3, ROWS)
    one = {name: value[:1] for name, value in three.items()}
    for scope in ("all", "own"):
        assert loss(embeddings(**three), scope=scope, number=1) == loss(embeddings(**one), scope=scope)


# ---- Several processes


def _trained() -> Embeddings:
    """Captions that are near their pictures, hard ones that are not."""
    return embeddings(text_VND=F.normalize(features(1, 1, ROWS) + 0.5 * features(2, 1, ROWS), dim=-1))


def _on_a_rank(rank: int, world: int) -> float:
    embedded = _trained()
    mine = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    local = {
        name: value[:, mine] if isinstance(value, Tensor) and value.ndim > 1 else value
        for name, value in vars(embedded).items()
    }
    here = Embeddings(**{name: value for name, value in local.items() if name in Embeddings.__dataclass_fields__})
    total = loss(here, "infonce") + loss(here)
    return distributed.mean_over_ranks({"loss": total.item()})["loss"]


def _as_released(rank: int, world: int) -> float:
    """True and hard captions of a process stacked, gathered, and labelled as if all true ones stood in front."""
    embedded = _trained()
    mine = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    assert embedded.hard_text_KND is not None
    stacked = torch.cat([embedded.text_ND[mine], embedded.hard_text_KND[:, mine].flatten(0, 1)])
    logits = SCALE * embedded.image_ND[mine] @ distributed.gather_rows(stacked).T
    labels = torch.arange(ROWS)[mine]
    return distributed.mean_over_ranks({"loss": F.cross_entropy(logits, labels).item()})["loss"]


@pytest.mark.parametrize("world", [2, 3])
def test_labels_point_at_the_true_captions_on_several_processes(run_ranks, world):
    """The released code stacks before it gathers, so most labels point at hard captions of the first process."""
    embedded = _trained()
    image, text, hard = embedded.image_ND, embedded.text_ND, hard_columns(embedded)
    expected = negclip(image, text, hard, embedded.logit_scale).item()
    assert run_ranks(_on_a_rank, world) == pytest.approx([expected] * world, rel=1e-9)
    right = F.cross_entropy(SCALE * image @ torch.cat([text, hard]).T, torch.arange(ROWS)).item()
    assert abs(run_ranks(_as_released, world)[0] - right) > 0.1


# ---- What it needs


def test_it_says_what_it_needs():
    assert base.parse({"name": "hard_negatives", "number": 3}).needs >= {"hard_texts:3", "image", "text"}
    needs = base.parse({"name": "hard_negatives", "form": "sigmoid"}).needs
    assert "logit_bias" in needs
    assert "text" not in needs
