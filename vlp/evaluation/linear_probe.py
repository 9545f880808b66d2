"""The linear probe of benchmarks: a logistic regression on the features of a train split, tried on another.

As in Radford et al., arXiv:2103.00020, appendix A.3, L-BFGS fits it and the strength of regularisation is searched on a
part of the train split: here a fifth of each class (`probe.held_out`), by accuracy, over powers of ten (`POWERS`) and
then half a power to both sides of the best. Of equally good ones, as there are many where a fifth is a few pictures,
that of the least cross-entropy there; the strongest of them would cost points. It is then fitted to the whole split.
Nothing is random.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp.evaluation import probe

# Of ten, the strength in mean cross-entropy + strength/2 ||W||^2; scikit-learn's C is 1 / (strength N).
POWERS = (1.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0)
WITHOUT_SPLIT = 1e-2  # where no class has the five pictures that a split needs
SEARCH_STEPS = 100  # from what the next stronger one has come to
MAX_STEPS = 1_000
MAX_DOUBLES = 2**27  # 1 GiB of features in fp64; more are fitted in fp32


@dataclass(frozen=True)
class LinearProbe:
    """Logits of classes from features.

    Features are centred and divided by one number, their deviation, so that a strength means the same for any model:
    the mean of a centred column's square is 1, in the mean over the columns.
    """

    weights_CD: Tensor
    offset_C: Tensor
    mean_D: Tensor
    deviation: Tensor
    strength: float
    held_out_accuracy: float | None

    def scaled(self, features_ND: Tensor) -> Tensor:
        return (features_ND.to(self.mean_D) - self.mean_D) / self.deviation

    def logits(self, features_ND: Tensor) -> Tensor:
        return F.linear(self.scaled(features_ND), self.weights_CD, self.offset_C)

    def note(self) -> str:
        if self.held_out_accuracy is None:
            return f"linear probe: strength {self.strength:.3g} unsearched, as no class of train/ has five pictures"
        held_out = f"{100 * self.held_out_accuracy:.1f} % of a fifth of train/"
        return f"linear probe: strength {self.strength:.3g}, of which {held_out} was right"


def fit_linear_probe(features_ND: Tensor, labels_N: Tensor, num_classes: int) -> LinearProbe:
    """The probe of features ND of a train split with the classes ``labels_N``, in fp64 where memory allows it."""
    labels_N = labels_N.to(features_ND.device)
    features_ND = features_ND.double() if features_ND.numel() <= MAX_DOUBLES else features_ND.float()
    mean_D = features_ND.mean(dim=0)
    centred_ND = features_ND - mean_D
    deviation = centred_ND.square().mean().sqrt()
    deviation = torch.where(deviation < probe.SAME, torch.ones_like(deviation), deviation)  # all features are equal
    scaled_ND = centred_ND / deviation
    asked_N = probe.held_out(labels_N)
    strength, accuracy, start = WITHOUT_SPLIT, None, None
    if asked_N.any():
        strength, accuracy, start = _search(scaled_ND, labels_N, asked_N, num_classes)
    fitted = probe.fit(scaled_ND, labels_N, num_classes, strength, start, MAX_STEPS)
    return LinearProbe(*fitted, mean_D, deviation, strength, accuracy)


def _search(
    features_ND: Tensor, labels_N: Tensor, asked_N: Tensor, num_classes: int
) -> tuple[float, float, tuple[Tensor, Tensor]]:
    """The strength that does best on the rows ``asked_N``, its accuracy there, and what was fitted to the others."""
    Fit = tuple[Tensor, Tensor]

    def tried(power: float, start: Fit | None) -> tuple[float, float, float, Fit]:
        fit = probe.fit(features_ND[~asked_N], labels_N[~asked_N], num_classes, 10**power, start, SEARCH_STEPS)
        logits_NC = F.linear(features_ND[asked_N], *fit)
        right_N = logits_NC.argmax(dim=1) == labels_N[asked_N]
        return float(right_N.double().mean()), -float(F.cross_entropy(logits_NC, labels_N[asked_N])), power, fit

    found: list[tuple[float, float, float, Fit]] = []
    for power in POWERS:
        found.append(tried(power, found[-1][3] if found else None))
    _, _, power, fit = max(found, key=lambda one: one[:3])
    found += [tried(power + half, fit) for half in (0.5, -0.5)]
    accuracy, _, power, fit = max(found, key=lambda one: one[:3])
    return 10**power, accuracy, fit
