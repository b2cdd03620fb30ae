"""Loss, accuracy and the other metrics of a model's predictions."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from simplestack.serving.errors import printable

Z = 1.96  # standard deviations on either side of the mean that hold 95 % of a normal distribution
BINS = 10  # of confidence, for the calibration error
SCORES = ("precision", "recall", "f1-score")
K, MANY_CLASSES = 5, 10  # top-5 accuracy is of interest from 10 classes on


def loss_and_accuracy(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the mean cross-entropy and the accuracy of N×C logits, given N class indices."""
    accuracy = (logits.argmax(1) == targets).double().mean()
    return nn.functional.cross_entropy(logits, targets).item(), accuracy.item()


def interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion (Wilson 1927)."""
    accuracy, z2 = correct / total, Z * Z / total
    middle = (accuracy + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(accuracy * (1 - accuracy) / total + z2 / total / 4)
    return middle - half, middle + half


def calibration_error(confidence: NDArray[Any], correct: NDArray[Any]) -> float:
    """Return the expected calibration error: the mean distance between confidence and accuracy.

    It is taken over bins of equal width (Guo et al. 2017, "On Calibration of Modern Neural
    Networks"). 0 means that of all predictions with a confidence of 0.8, 80 % are correct.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(float((correct - confidence)[bins == b].sum())) for b in range(BINS)]
    return sum(gaps) / len(correct)


def compute_metrics(probabilities: Tensor, labels: Tensor, classes: list[str]) -> dict[str, Any]:
    """Compare N×C probabilities with the N true labels. Proportions are 0 to 1.

    The names are those of scikit-learn's classification_report.
    """
    probs, targets = np.asarray(probabilities), np.asarray(labels)
    predicted = probs.argmax(1)
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (targets, predicted), 1)
    correct, support = confusion.diagonal(), confusion.sum(1)
    precision, recall = correct / confusion.sum(0).clip(1), correct / support.clip(1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    table = np.stack([precision, recall, f1], 1)

    def row(values: NDArray[Any], photos: int) -> dict[str, Any]:
        return {**dict(zip(SCORES, values.tolist(), strict=True)), "support": photos}

    rows = zip(classes, table, support.tolist(), strict=True)
    return {
        "photos": len(targets),
        "accuracy": float((predicted == targets).mean()),
        "accuracy_95": interval(int(correct.sum()), len(targets)),
        **top_k(probs, targets),
        "calibration_error": calibration_error(probs.max(1), predicted == targets),
        "classes": {name: row(values, photos) for name, values, photos in rows},
        "macro avg": row(table.mean(0), len(targets)),
        "confusion": confusion.tolist(),  # one row per true class, one column per predicted class
    }


def top_k(probs: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
    """Return the share of photos whose true class is among the K most probable, of many classes."""
    if probs.shape[1] < MANY_CLASSES:
        return {}
    most_probable = np.argpartition(probs, -K)[:, -K:]
    return {f"top-{K}": float((most_probable == targets[:, None]).any(1).mean())}


def format_metrics(metrics: dict[str, Any]) -> str:
    """Return the metrics as a few lines of text."""
    rows = {printable(name): row for name, row in metrics["classes"].items()}
    width = max(map(len, rows))
    lines = [
        f"accuracy {metrics['accuracy']:.4f} on {metrics['photos']} validation photos"
        f" ({format_interval(metrics)})",
        f"calibration error {metrics['calibration_error']:.3f}",
    ]
    if f"top-{K}" in metrics:
        lines.append(f"top-{K} accuracy {metrics[f'top-{K}']:.4f}")
    lines += [
        f"{name:{width}}  precision {row['precision']:.3f}  recall {row['recall']:.3f}"
        f"  f1-score {row['f1-score']:.3f}  ({row['support']} photos)"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def format_interval(metrics: dict[str, Any]) -> str:
    """Return the confidence interval of the accuracy as text."""
    low, high = metrics["accuracy_95"]
    return f"95 % confidence interval {low:.3f} to {high:.3f}"
