"""DCL and DCLW: their identities with InfoNCE, values by hand, and what public code gets wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp import similarity
from vlp.features import Embeddings
from vlp.objectives import base
from vlp.types import UserError

ROWS = 8


def features(seed: int, rows: int = ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 6, generator=random, dtype=torch.float64), dim=1).to(dtype)


def random_logits(rows: int = ROWS) -> Tensor:
    random = torch.Generator().manual_seed(7)
    return 2 * torch.randn(rows, rows, generator=random, dtype=torch.float64) + torch.eye(rows)


def of_logits(logits_BB: Tensor, bias: float = 0.0) -> Embeddings:
    """Embeddings whose logits are these: at scale 1, images are the unit vectors and texts the columns."""
    eye = torch.eye(len(logits_BB), dtype=logits_BB.dtype)
    one = torch.ones((), dtype=logits_BB.dtype)
    return Embeddings(eye[None], logits_BB.T[None], one, torch.tensor(bias))


def loss(embedded: Embeddings, **options: Any) -> Tensor:
    return base.parse({"name": "decoupled", **options}).loss(embedded).total


def infonce_of_pairs(logits_BB: Tensor) -> Tensor:
    """InfoNCE of each pair, both directions: 2 x B."""
    matches = torch.arange(len(logits_BB))
    return torch.stack([F.cross_entropy(x, matches, reduction="none") for x in (logits_BB, logits_BB.T)])


def dense(image: Tensor, text: Tensor, scale: Tensor, sigma: float | None = None) -> Tensor:
    """The formula, written out."""
    logits = scale * image @ text.T
    matching = logits.diagonal()
    negatives = logits.masked_fill(torch.eye(len(logits)).bool(), -torch.inf)
    weights = torch.ones_like(matching)
    if sigma is not None:
        weights = 2 - len(logits) * ((image * text).sum(1) / sigma).detach().softmax(0)
    return ((negatives.logsumexp(0) + negatives.logsumexp(1)) / 2 - weights * matching).mean()


@pytest.fixture(params=["dense", "tiled"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to take the sums have the identities."""
    if request.param == "tiled":
        monkeypatch.setattr(similarity, "MOST_DENSE_LOGITS", 0)
    return request.param


@pytest.mark.usefixtures("path")
class TestDecoupled:
    def test_by_hand(self):
        # With two pairs, the negative minus the match: images to texts 1 - 2, 0 - 3, texts to images 0 - 2, 1 - 3.
        logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
        assert loss(of_logits(logits)).item() == pytest.approx((-1 - 3 - 2 - 2) / 4, abs=1e-12)

    def test_is_infonce_and_the_logarithm_of_what_the_match_leaves(self):
        logits = random_logits()
        matches = torch.stack([logits.softmax(1).diagonal(), logits.T.softmax(1).diagonal()])
        expected = (infonce_of_pairs(logits) + (1 - matches).log()).mean()
        torch.testing.assert_close(loss(of_logits(logits)), expected, rtol=1e-12, atol=1e-12)
        # The other way round, infonce is the softplus of each term.
        one_row = torch.tensor([[0.5, -1.0], [0.2, 0.5]], dtype=torch.float64)
        terms = torch.tensor([-1.5, -0.3, -0.3, -1.5], dtype=torch.float64)
        torch.testing.assert_close(infonce_of_pairs(one_row).mean(), F.softplus(terms).mean())
        assert loss(of_logits(one_row)).item() == pytest.approx(terms.mean().item())

    def test_pushes_negatives_as_infonce_does_without_the_factor_of_easy_matches(self):
        logits = random_logits().requires_grad_()
        (found,) = torch.autograd.grad(loss(of_logits(logits)), logits)
        for_texts, for_images = logits.softmax(1).detach(), logits.softmax(0).detach()
        expected = for_texts / (1 - for_texts.diagonal())[:, None] + for_images / (1 - for_images.diagonal())
        expected = (expected / (2 * ROWS)).fill_diagonal_(-1 / ROWS)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)

    def test_has_a_gradient_where_infonce_has_none_left(self):
        logits = (40 * torch.eye(ROWS, dtype=torch.float64)).requires_grad_()
        (ours,) = torch.autograd.grad(loss(of_logits(logits)), logits)
        (theirs,) = torch.autograd.grad(infonce_of_pairs(logits).mean(), logits)
        assert theirs.abs().max() < 1e-12
        assert ours.diagonal().tolist() == pytest.approx([-1 / ROWS] * ROWS)

    def test_weights_are_constants_with_mean_one(self):
        """Regression: public code lets the gradient into the weights."""
        logits = random_logits().requires_grad_()
        weights = 2 - ROWS * (logits.detach().diagonal() / 0.5).softmax(0)
        total = loss(of_logits(logits), weighted=True)
        (found,) = torch.autograd.grad(total, logits)
        torch.testing.assert_close(found.diagonal(), -weights / ROWS, rtol=1e-10, atol=1e-12)
        expected = loss(of_logits(logits)) + ((1 - weights) * logits.diagonal()).mean()
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
        # Softmax does not see a shift of all matches, so the loss falls by the shift times the mean of the weights.
        shifted = loss(of_logits(logits + 3 * torch.eye(ROWS)), weighted=True)
        assert (total - shifted).item() == pytest.approx(3, abs=1e-10)

    def test_weighs_more_what_agrees_less(self):
        logits = torch.diag(torch.tensor([0.9, 0.1, 0.5], dtype=torch.float64)).requires_grad_()
        (found,) = torch.autograd.grad(loss(of_logits(logits), weighted=True, sigma=0.3), logits)
        pulls = -3 * found.diagonal()
        assert pulls[1] > pulls[2] > pulls[0]
        assert pulls[1] > 1 > pulls[0]

    def test_a_large_sigma_is_no_weight(self):
        embedded = of_logits(random_logits())
        plain = loss(embedded)
        torch.testing.assert_close(loss(embedded, weighted=True, sigma=1e9), plain, rtol=1e-7, atol=1e-7)
        assert abs(loss(embedded, weighted=True) - plain) > 1e-2

    def test_has_no_lower_bound_as_the_scale_grows(self):
        image = torch.eye(4, dtype=torch.float64)

        def at(scale: float) -> float:
            return loss(Embeddings.of(image, image, torch.tensor(scale, dtype=torch.float64))).item()

        assert [at(s) for s in (10.0, 100.0)] == pytest.approx([math.log(3) - 10, math.log(3) - 100])

    def test_starts_at_the_logarithm_of_the_number_of_negatives(self):
        assert loss(of_logits(torch.full((9, 9), 0.3))).item() == pytest.approx(math.log(8))

    def test_a_bias_of_the_logits_cancels(self):
        torch.testing.assert_close(loss(of_logits(random_logits(), bias=-10.0)), loss(of_logits(random_logits())))

    @pytest.mark.parametrize("sigma", [None, 0.5, 0.05])
    def test_value_and_gradients_are_those_of_the_formula(self, sigma):
        options = {} if sigma is None else {"weighted": True, "sigma": sigma}
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
            inputs = [features(0, dtype=dtype), features(1, dtype=dtype), torch.tensor(14.3, dtype=dtype)]
            ours = [x.clone().requires_grad_() for x in inputs]
            exact = [x.double().requires_grad_() for x in inputs]
            found = loss(Embeddings(ours[0][None], ours[1][None], ours[2], torch.zeros(())), **options)
            expected = dense(*exact, sigma)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
            gradients = (torch.autograd.grad(found, ours), torch.autograd.grad(expected, exact))
            for actual, right in zip(*gradients, strict=True):
                torch.testing.assert_close(actual.double(), right, rtol=tolerance, atol=tolerance)

    def test_one_row_is_refused(self):
        with pytest.raises(ValueError, match="a global batch of one row has none"):
            loss(of_logits(torch.ones(1, 1)))


def value_and_gradients(rank: int, world: int, rows: int, options: dict[str, Any]) -> tuple[float, Tensor, Tensor]:
    """Loss of this rank, and the gradients of the mean over ranks by its images and by the scale."""
    local = slice(rank * rows // world, (rank + 1) * rows // world)
    image = features(0, rows)[local].requires_grad_()
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    total = loss(Embeddings(image[None], features(1, rows)[None, local], scale, torch.zeros(())), **options)
    total.backward()
    assert image.grad is not None
    assert scale.grad is not None
    return total.item(), image.grad / world, scale.grad / world


@pytest.mark.parametrize("options", [{}, {"weighted": True}])
@pytest.mark.parametrize(("world", "rows"), [(2, 8), (4, 8), (4, 4)])
def test_processes_share_negatives_and_weights(run_ranks, world, rows, options):
    """With one row a process, too; the weights' mean is over all processes."""
    expected, of_image, of_scale = value_and_gradients(0, 1, rows, options)
    results = run_ranks(value_and_gradients, world, rows, options)
    assert sum(value for value, _, _ in results) / world == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(torch.cat([gradient for _, gradient, _ in results]), of_image, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sum(gradient for _, _, gradient in results), of_scale, rtol=1e-10, atol=1e-12)


def test_sigma_without_weights_is_refused():
    with pytest.raises(UserError, match=r"sigma has no effect without weights: remove it, or set weighted: true"):
        base.parse({"name": "decoupled", "sigma": 0.3})
    written = base.parse({"name": "decoupled"}).model_dump(mode="json")
    assert base.parse(written).model_dump(mode="json") == written, "a resolved recipe can be read again"


def test_the_log_warns_of_a_learned_temperature():
    assert "train.temperature" in " ".join(base.parse({"name": "decoupled"}).notes())
