"""How far confidence can be trusted: with and without a temperature, and above some thresholds."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from simplestack.training import calibration
from simplestack.training.metrics import MIN_FOR_PERCENTAGE, calibration_error, interval

SCORES = ("log loss", "calibration error")
THRESHOLDS = (0.5, 0.8, 0.9, 0.99)
RESAMPLES = 1000  # of the bootstrap

Interval = tuple[float, float]
"""A 95 % confidence interval."""


class Confidence(NamedTuple):
    """The scores of validation photos whose temperature is cross-fitted, and of thresholds."""

    temperature: float  # 1 if no other lowers the log loss
    scores: list[tuple[str, float, float, Interval]]  # name, without, with; of the difference
    thresholds: list[tuple[float, int, int, Interval]]  # answers, correct ones; of their share


def measure(logits: Tensor, targets: Tensor) -> Confidence | None:
    """Return the confidence of N×C logits, given N class indices; for few photos, None."""
    if (count := len(targets)) < MIN_FOR_PERCENTAGE:
        return None
    temperature, cross_fitted = calibration.fit(logits, targets)
    plain, fitted = (_columns(x, targets) for x in (logits, logits / cross_fitted))
    random, differences = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = random.integers(count, size=count)
        differences.append(_scores(fitted[:, drawn]) - _scores(plain[:, drawn]))
    intervals = np.percentile(differences, (2.5, 97.5), axis=0).T.tolist()
    columns = (SCORES, _scores(plain).tolist(), _scores(fitted).tolist(), intervals)
    thresholds = []
    for threshold in THRESHOLDS:
        _, confidence, correct = plain if temperature == 1 else fitted
        counted = correct[confidence >= threshold]
        if total := len(counted):
            right = int(counted.sum())
            thresholds.append((threshold, total, right, interval(right, total)))
    return Confidence(temperature, list(zip(*columns, strict=True)), thresholds)


def _columns(logits: Tensor, targets: Tensor) -> NDArray[Any]:
    """Return the log loss of each photo, its confidence, and whether it is correct, 3×N."""
    loss = cross_entropy(logits, targets, reduction="none")
    confidence, predicted = logits.softmax(1).max(1)
    return np.stack([loss, confidence, predicted == targets]).astype(float)


def _scores(columns: NDArray[Any]) -> NDArray[Any]:
    """Return the SCORES of such columns."""
    return np.array([columns[0].mean(), calibration_error(columns[1], columns[2])])
