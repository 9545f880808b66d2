"""TCL: its identities with InfoNCE, its formulas written out, and what the paper's code gets wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.durations import Schedule, Span
from vlp.features import Embeddings, Features, Queue
from vlp.objectives import base, triple
from vlp.similarity import parts, rows
from vlp.types import Loss, UserError

N, D, P, L, Q = 5, 6, 16, 4, 10
WORDS = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0]], dtype=torch.bool)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=-1)


def twin_of(image_ND: Tensor, text_ND: Tensor, words_NL: Tensor = WORDS, **others: Tensor) -> Features:
    scale = torch.tensor(1.0)  # the twin's own, which is not used
    tokens = {
        "image_tokens_NPD": normal(len(image_ND), P, D, seed=5),
        "text_tokens_NLD": normal(len(image_ND), words_NL.shape[1], D, seed=6),
        "text_mask_NL": words_NL,
    }
    return Features(image_ND[None], text_ND[None], scale, torch.tensor(0.0), **(tokens | others))


def fresh() -> Embeddings:
    """A batch beside a twin of other features and a queue, in fp64."""
    return Embeddings.of(
        unit(N, D, seed=1).requires_grad_(),
        unit(N, D, seed=2).requires_grad_(),
        torch.tensor(4.0, dtype=torch.float64, requires_grad=True),
        momentum=twin_of(unit(N, D, seed=3), unit(N, D, seed=4)),
        queue=Queue(unit(Q, D, seed=7), unit(Q, D, seed=8)),
    )


@pytest.fixture
def embedded() -> Embeddings:
    return fresh()


def tcl(embedded: Embeddings, *terms: str, **options: Any) -> Loss:
    entry = {"name": "triple", "terms": list(terms) or ["cma", "imc", "lmi"], **options}
    return base.parse(entry).at(Span(100, 10, 1000), 50).loss(embedded)


@pytest.fixture(params=["whole", "strips"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices as they are, or two rows at a time."""
    if request.param == "strips":
        for module in (triple, parts):
            monkeypatch.setattr(module, "by_rows", partial(rows.by_rows, most_logits=2 * (N + Q)))


# ---- The formulas, written out


def cma_by_hand(embedded: Embeddings, alpha: float) -> Tensor:
    twin, queue, s = embedded.momentum, embedded.queue, embedded.logit_scale
    images, texts = torch.cat([twin.image_ND, queue.image_QD]), torch.cat([twin.text_ND, queue.text_QD])
    losses = []
    for online, guide, columns in (
        (embedded.image_ND, twin.image_ND, texts),
        (embedded.text_ND, twin.text_ND, images),
    ):
        targets = alpha * (s * guide @ columns.T).softmax(1).detach() + (1 - alpha) * torch.eye(N, N + Q)
        losses.append(-(targets * (s * online @ columns.T).log_softmax(1)).sum(1).mean())
    return sum(losses) / 2


def imc_by_hand(embedded: Embeddings) -> Tensor:
    twin, queue, s = embedded.momentum, embedded.queue, embedded.logit_scale
    losses = [
        F.cross_entropy(s * online @ torch.cat([own, queued]).T, torch.arange(N))
        for online, own, queued in (
            (embedded.image_ND, twin.image_ND, queue.image_QD),
            (embedded.text_ND, twin.text_ND, queue.text_QD),
        )
    ]
    return sum(losses) / 2


def lmi_by_hand(embedded: Embeddings) -> Tensor:
    twin, s = embedded.momentum, embedded.logit_scale
    grid = twin.image_tokens_NPD.view(N, 4, 4, D)
    windows = [grid[:, i : i + 2, j : j + 2].mean((1, 2)) for i in (0, 2) for j in (0, 2)]
    words = [list(tokens[mask]) for tokens, mask in zip(twin.text_tokens_NLD, twin.text_mask_NL, strict=True)]
    total = 0.0
    for wholes, locals_ in ((embedded.image_ND, list(torch.stack(windows, 1))), (embedded.text_ND, words)):
        of_rows = []
        for i in range(N):
            logits = [[s * F.normalize(local, dim=0) @ wholes[i] for local in row] for row in locals_]
            others = sum(x.exp() for j in range(N) if j != i for x in logits[j])
            of_rows.append(sum(-(x.exp() / (x.exp() + others)).log() for x in logits[i]) / len(logits[i]))
        total = total + sum(of_rows) / N
    return total / 2


@pytest.mark.usefixtures("_path")
def test_is_the_mean_of_the_three_written_out(embedded: Embeddings) -> None:
    found = tcl(embedded, alpha=0.3)
    by_hand = {
        "cma_loss": cma_by_hand(embedded, 0.3),
        "imc_loss": imc_by_hand(embedded),
        "lmi_loss": lmi_by_hand(embedded),
    }
    for name, value in by_hand.items():
        torch.testing.assert_close(found.parts[name], value)
    total = sum(by_hand.values()) / 3
    torch.testing.assert_close(found.total, total)
    inputs = [embedded.image_VND, embedded.text_VND, embedded.logit_scale]
    for ours, theirs in zip(torch.autograd.grad(found.total, inputs), torch.autograd.grad(total, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_terms_are_averaged_alone_or_together(embedded: Embeddings) -> None:
    parts = tcl(embedded).parts
    for terms in (("cma",), ("imc", "lmi"), ("lmi", "cma")):
        found = tcl(embedded, *terms)
        losses = {name: value for name, value in found.parts.items() if name.endswith("_loss")}
        assert losses == {f"{term}_loss": parts[f"{term}_loss"] for term in terms}
        torch.testing.assert_close(found.total, sum(losses.values()) / len(terms))
    assert tcl(embedded).parts["alpha"] == pytest.approx(0.4 * 50 / 99)  # the ramp to 0.4 over an epoch of 100 steps


# ---- Identities


def alike(logit_scale: float = 4.0, **others: Tensor) -> Embeddings:
    """A twin that is equal to the model and saw the same."""
    image, text = unit(N, D, seed=1), unit(N, D, seed=2)
    return Embeddings.of(image, text, torch.tensor(logit_scale).double(), momentum=twin_of(image, text, **others))


def test_without_soft_targets_queue_and_lag_cma_is_infonce() -> None:
    infonce = base.parse({"name": "infonce"}).loss(alike()).total
    torch.testing.assert_close(tcl(alike(), "cma", alpha=0.0, queue_size=0).total, infonce)


def test_soft_targets_of_an_equal_twin_are_the_softmax_itself() -> None:
    """With alpha = 1 the cross-entropy is the entropy of the softmax, whose gradient is zero but for the targets'."""
    embedded = alike()
    logits = embedded.logit_scale * embedded.image_ND @ embedded.text_ND.T
    entropies = [-(x.softmax(1) * x.log_softmax(1)).sum(1).mean() for x in (logits, logits.T)]
    torch.testing.assert_close(tcl(embedded, "cma", alpha=1.0, queue_size=0).total, sum(entropies) / 2)


def test_the_positive_of_imc_is_the_logit_scale_exactly(embedded: Embeddings) -> None:
    """With the same view and an equal twin: all that is left of the loss is the sum over the others."""
    s = 4.0
    queue = embedded.queue
    for own, other in ((unit(N, D, seed=1), queue.image_QD), (unit(N, D, seed=2), queue.text_QD)):
        logits = s * own @ torch.cat([own, other]).T
        assert torch.allclose(logits[:, :N].diagonal(), torch.tensor(s, dtype=torch.float64), atol=1e-12, rtol=0)
    others = [
        ((s * own @ torch.cat([own, queued]).T).exp().sum(1).log() - s).mean()
        for own, queued in ((unit(N, D, seed=1), queue.image_QD), (unit(N, D, seed=2), queue.text_QD))
    ]
    found = tcl(replace(alike(s), queue=queue), "imc").total
    torch.testing.assert_close(found, sum(others) / 2, rtol=0, atol=1e-12)


def test_imc_uses_no_soft_targets(embedded: Embeddings) -> None:
    without, with_ = (tcl(embedded, "cma", "imc", alpha=alpha).parts for alpha in (0.0, 1.0))
    assert without["imc_loss"] == with_["imc_loss"]
    assert without["cma_loss"] != with_["cma_loss"]


@pytest.mark.parametrize("rows_", [2, 3, 5])
def test_lmi_of_a_collapsed_model_is_that_of_chance(rows_: int) -> None:
    """ln(1 + (N - 1) K), whatever the temperature: four windows of pictures, and three words."""
    one = F.normalize(torch.ones(rows_, D, dtype=torch.float64), dim=-1)
    words = torch.ones(rows_, 3, dtype=torch.bool)
    tokens = {"image_tokens_NPD": one[:, None].expand(-1, P, -1), "text_tokens_NLD": 7 * one[:, None].expand(-1, 3, -1)}
    embedded = Embeddings.of(one, one, torch.tensor(9.0).double(), momentum=twin_of(one, one, words, **tokens))
    expected = (math.log(1 + (rows_ - 1) * 4) + math.log(1 + (rows_ - 1) * 3)) / 2
    torch.testing.assert_close(tcl(embedded, "lmi").total.item(), expected)


def test_nothing_of_the_twin_gets_a_gradient(embedded: Embeddings) -> None:
    twin, queue = embedded.momentum, embedded.queue
    guides = [twin.image_VND, twin.text_VND, twin.image_tokens_NPD, twin.text_tokens_NLD, *queue]
    for guide in guides:
        guide.requires_grad_()
    tcl(embedded).total.backward()
    assert all(guide.grad is None for guide in guides)


def test_the_queue_is_compared_with_and_its_order_does_not_matter(embedded: Embeddings) -> None:
    mixed = Queue(*(one.flip(0) for one in embedded.queue))
    torch.testing.assert_close(tcl(replace(embedded, queue=mixed)).total, tcl(embedded).total)
    without = tcl(replace(embedded, queue=None))
    for part in ("cma_loss", "imc_loss"):
        assert without.parts[part] < tcl(embedded).parts[part], "fewer columns"
    assert without.parts["lmi_loss"] == tcl(embedded).parts["lmi_loss"]
    assert tcl(embedded, queue_size=0).total == without.total, "a queue of another objective is not used"


# ---- Words and regions


def test_paddings_change_nothing(embedded: Embeddings) -> None:
    """Defect 6 of methods.md: the paper's code adds a constant at paddings, and keeps them in the mean."""
    twin = embedded.momentum
    expected = tcl(embedded, "lmi").total
    gradient = torch.autograd.grad(expected, embedded.text_VND)[0]
    for value in (100.0, torch.nan, torch.inf):
        tokens = twin.text_tokens_NLD.masked_fill(~WORDS[..., None], value)
        found = tcl(replace(embedded, momentum=replace(twin, text_tokens_NLD=tokens)), "lmi").total
        assert found == expected
        assert torch.equal(torch.autograd.grad(found, embedded.text_VND)[0], gradient)
    # More paddings, longer texts: the same.
    longer = replace(
        twin,
        text_tokens_NLD=F.pad(twin.text_tokens_NLD, (0, 0, 1, 2), value=3.0),
        text_mask_NL=F.pad(WORDS, (1, 2), value=False),
    )
    torch.testing.assert_close(tcl(replace(embedded, momentum=longer), "lmi").total, expected)


def test_texts_without_words_add_nothing_and_are_counted(embedded: Embeddings) -> None:
    twin = embedded.momentum
    silent = WORDS.clone()
    silent[[1, 3]] = False
    found = tcl(replace(embedded, momentum=replace(twin, text_mask_NL=silent)), "lmi")
    assert found.parts["share_without_words"] == pytest.approx(2 / 5)
    # Their rows add 0 to the mean over all five, and no negatives to the others.
    kept = torch.tensor([0, 2, 4])
    speaking = Embeddings.of(
        embedded.image_ND[kept],
        embedded.text_ND[kept],
        embedded.logit_scale,
        momentum=Features(
            twin.image_VND[:, kept],
            twin.text_VND[:, kept],
            twin.logit_scale,
            twin.logit_bias,
            twin.image_tokens_NPD[kept],
            twin.text_tokens_NLD[kept],
            WORDS[kept],
        ),
    )
    images = tcl(embedded, "lmi").total * 2 - 2 * text_half(embedded)
    torch.testing.assert_close(2 * found.total - images, 2 * text_half(speaking) * 3 / 5)


def text_half(embedded: Embeddings) -> Tensor:
    """What texts add to lmi_loss: the rest is of pictures, which a twin whose texts are silent leaves alone."""
    twin = embedded.momentum
    silent = replace(twin, text_mask_NL=torch.zeros_like(twin.text_mask_NL))
    return tcl(embedded, "lmi").total - tcl(replace(embedded, momentum=silent), "lmi").total


@pytest.mark.usefixtures("_path")
def test_a_batch_without_any_words_is_finite(embedded: Embeddings) -> None:
    silent = replace(embedded, momentum=replace(embedded.momentum, text_mask_NL=torch.zeros_like(WORDS)))
    found = tcl(silent)
    found.total.backward()
    assert found.total.isfinite()
    assert found.parts["share_without_words"] == 1
    assert embedded.logit_scale.grad.isfinite()


@pytest.mark.parametrize(
    ("patches", "regions"), [(1, 1), (4, 4), (9, 9), (16, 4), (49, 9), (196, 16), (256, 16), (6, 6), (200, 16)]
)
def test_numbers_of_regions(patches: int, regions: int) -> None:
    """A g x g grid in windows of floor(sqrt g); what is no square, in at most 16 runs."""
    assert triple._regions(torch.zeros(2, patches, 3)).shape == (2, regions, 3)


def test_regions_are_means_of_windows() -> None:
    grid = torch.arange(16.0).view(1, 16, 1)
    assert triple._regions(grid).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    run = torch.arange(32.0).view(1, 32, 1)
    assert triple._regions(run).flatten().tolist() == [0.5 + 2 * i for i in range(16)]


# ---- Over processes


def half_silent(rank: int, world: int) -> Any:
    """Loss and gradients where the texts of the first two rows have no words."""
    whole = fresh()
    twin = whole.momentum
    mask = WORDS[:4].clone()
    mask[:2] = False
    size = 4 // world
    local = slice(rank * size, (rank + 1) * size)
    leaves = [x[:4][local].detach().clone().requires_grad_() for x in (whole.image_ND, whole.text_ND)]
    scale = whole.logit_scale.detach().clone().requires_grad_()
    here = Features(
        twin.image_VND[:, :4][:, local],
        twin.text_VND[:, :4][:, local],
        twin.logit_scale,
        twin.logit_bias,
        twin.image_tokens_NPD[:4][local],
        twin.text_tokens_NLD[:4][local],
        mask[local],
    )
    found = tcl(Embeddings.of(*leaves, scale, momentum=here, queue=whole.queue))
    found.total.backward()
    return found.total.item(), found.parts["share_without_words"].item(), [x.grad / world for x in leaves], scale.grad


@pytest.mark.parametrize("world", [2, 4])
def test_a_process_whose_texts_have_no_words_does_not_stop_the_others(run_ranks, world: int) -> None:
    loss, share, expected, scale = half_silent(0, 1)
    ranks = run_ranks(half_silent, world)
    assert sum(rank[0] for rank in ranks) / world == pytest.approx(loss, rel=1e-12)
    assert sum(rank[1] for rank in ranks) / world == share == 0.5
    for which in (0, 1):
        torch.testing.assert_close(torch.cat([rank[2][which] for rank in ranks]), expected[which])
    torch.testing.assert_close(sum(rank[3] for rank in ranks) / world, scale)


# ---- Options


def test_needs_are_those_of_its_terms() -> None:
    def needs(**options: Any) -> set[str]:
        return {*base.parse({"name": "triple", **options}).needs} - {"image", "text"}

    tokens = {"momentum.image_tokens", "momentum.text_tokens"}
    assert needs() == {"momentum", "queue", *tokens}
    assert needs(terms=["cma"]) == {"momentum", "queue"}
    assert needs(terms=["imc"], queue_size=0) == {"momentum"}
    assert needs(terms=["lmi"]) == {"momentum", *tokens}


def test_alpha_rises_over_the_first_epoch() -> None:
    objective, span = base.parse({"name": "triple"}), Span(1000, 10, 1000)
    assert [objective.at(span, step).alpha for step in (0, 33, 66, 99, 500)] == pytest.approx(
        [0, 0.4 / 3, 0.8 / 3, 0.4, 0.4]
    )
    fixed = base.parse({"name": "triple", "alpha": {"start": 0.1, "end": 0.2, "over": "2 epochs"}})
    assert fixed.alpha == Schedule(start=0.1, end=0.2, over="2 epochs")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"terms": []}, "terms"),
        ({"terms": ["cma", "cma"]}, "names a term twice"),
        ({"terms": ["mlm"]}, "terms"),
        ({"momentum": 1.1}, "momentum"),
        ({"queue_size": -1}, "queue_size"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": {"start": 0, "end": 2, "over": 10}}, "alpha"),
        ({"terms": ["imc"], "alpha": 0.2}, "alpha has no effect without cma: remove it"),
        ({"terms": ["lmi"], "alpha": {"start": 0, "end": 0.4, "over": 10}}, "alpha has no effect without cma"),
        ({"terms": ["lmi"], "queue_size": 0}, "queue_size has no effect without cma or imc: remove it"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        base.parse({"name": "triple", **options})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("term", ["cma", "imc", "lmi"])
def test_defaults_may_be_written_out(term: str) -> None:
    """As in the recipe.yaml of a run."""
    given = base.parse({"name": "triple", "terms": [term]})
    assert base.parse(given.model_dump(mode="json")) == given
