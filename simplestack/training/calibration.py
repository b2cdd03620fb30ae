"""Temperature scaling: one divisor of all logits brings confidence closer to accuracy.

It changes no label (Guo et al. 2017, "On Calibration of Modern Neural Networks").
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from simplestack.training.metrics import MIN_FOR_PERCENTAGE

FOLDS = 10
TEMPERATURES = torch.tensor([1.05**i for i in range(-33, 34)])  # 0.2 to 5, in steps of 5 %


class Fit(NamedTuple):
    """The temperature to serve, and those that judge it."""

    temperature: float  # 1 for few photos, or if those below don't lower the log loss
    cross_fitted: Tensor  # N×1: for each photo, fitted to those nine of ten folds without it


def fit(logits: Tensor, targets: Tensor) -> Fit:
    """Fit a temperature to N×C logits, given N class indices."""
    if len(targets) < MIN_FOR_PERCENTAGE:
        return Fit(1.0, torch.ones(len(targets), 1))
    # Together, the smoothed labels weigh as much as one more photo, of all classes equally: else
    # photos that are all correct would get the lowest temperature (Platt 1999, "Probabilistic
    # Outputs for Support Vector Machines").
    smoothed = partial(cross_entropy, reduction="none", label_smoothing=1 / (len(targets) + 1))
    losses = torch.stack([smoothed(logits / divisor, targets) for divisor in TEMPERATURES])
    fold = torch.arange(len(targets)) % FOLDS
    cross_fitted = torch.stack([_best(losses[:, fold != i]) for i in range(FOLDS)])[fold, None]
    helps = cross_entropy(logits / cross_fitted, targets) < cross_entropy(logits, targets)
    return Fit(round(_best(losses).item(), 3) if helps else 1.0, cross_fitted)


def _best(losses: Tensor) -> Tensor:
    """Return the temperature with the lowest mean of T×N losses."""
    return TEMPERATURES[losses.mean(1).argmin()]
