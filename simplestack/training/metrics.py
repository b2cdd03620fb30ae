"""How good a network is, in numbers."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

Z = 1.96  # standard deviations on either side of the mean that hold 95 % of a normal distribution
BINS = 10  # of confidence, for the calibration error


def loss_and_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the mean cross-entropy and the share of right answers, of N×C logits."""
    right = (logits.argmax(1) == labels).double().mean()
    return nn.functional.cross_entropy(logits, labels).item(), right.item()


def interval(right: int, of: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion (Wilson 1927)."""
    share, z2 = right / of, Z * Z / of
    middle = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(share * (1 - share) / of + z2 / of / 4)
    return middle - half, middle + half


def calibration_error(confidence: NDArray[Any], right: NDArray[Any]) -> float:
    """Return the mean distance between confidence and accuracy, over bins of equal width.

    This is the expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural
    Networks"): 0 where of all answers given with a confidence of 0.8 just 80 % are right.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(float((right - confidence)[bins == b].sum())) for b in range(BINS)]
    return sum(gaps) / len(right)


def measure(probabilities: Tensor, labels: list[int], classes: list[str]) -> dict[str, Any]:
    """Measure N×C probabilities against the true labels; everything is from 0 to 1, or a count."""
    p, truth = np.asarray(probabilities), np.asarray(labels)
    answers = p.argmax(1)
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (truth, answers), 1)
    hits = confusion.diagonal()
    return {
        "photos": len(truth),
        "accuracy": float((answers == truth).mean()),
        "accuracy_95": interval(int(hits.sum()), len(truth)),
        "calibration_error": calibration_error(p.max(1), answers == truth),
        "classes": {
            name: {
                "photos": int(confusion[i].sum()),
                "precision": float(hits[i] / max(1, confusion[:, i].sum())),
                "recall": float(hits[i] / max(1, confusion[i].sum())),
            }
            for i, name in enumerate(classes)
        },
        "confusion": confusion.tolist(),  # a row for each true class, a column for each answer
    }


def text(measured: dict[str, Any]) -> str:
    """Put the metrics into a few lines for people."""
    low, high = measured["accuracy_95"]
    width = max(len(name) for name in measured["classes"])
    lines = [
        f"accuracy {measured['accuracy']:.4f} on {measured['photos']} validation photos"
        f" (95 % confidence interval {low:.3f} to {high:.3f})",
        f"calibration error {measured['calibration_error']:.3f}",
    ]
    lines += [
        f"{name:{width}}  precision {row['precision']:.3f}  recall {row['recall']:.3f}"
        f"  ({row['photos']} photos)"
        for name, row in measured["classes"].items()
    ]
    return "\n".join(lines)
