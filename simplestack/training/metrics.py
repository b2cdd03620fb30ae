"""Loss, accuracy and the other metrics of a model's predictions."""

import math
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from simplestack.serving.errors import printable

Z = 1.96  # standard deviations on either side of the mean that hold 95 % of a normal distribution
MIN_FOR_PERCENTAGE = 20  # photos: with fewer, show a count and its interval instead of a percentage
BINS = 10  # of confidence, for the calibration error
SCORES = ("precision", "recall", "f1-score")
MIN_CLASSES_FOR_TOP_5 = 10

Scores = TypedDict(
    "Scores",
    {"precision": float | None, "recall": float | None, "f1-score": float | None, "support": int},
)
Metrics = TypedDict(
    "Metrics",
    {
        "photos": int,
        "accuracy": float,
        "accuracy_95": tuple[float, float],  # confidence interval
        "top-5": NotRequired[float],
        "calibration_error": float,
        "classes": dict[str, Scores],
        "macro avg": Scores,
        "confusion": list[list[int]],  # a row per true class, a column per predicted class
    },
)


def loss_and_accuracy(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the mean cross-entropy and the accuracy of N×C logits, given N class indices."""
    accuracy = (logits.argmax(1) == targets).double().mean()
    return nn.functional.cross_entropy(logits, targets).item(), accuracy.item()


def interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion: the Wilson score interval.

    It is valid for few photos, and if all are correct (Wilson 1927, "Probable Inference, the Law of
    Succession, and Statistical Inference"). `total` is at least 1.
    """
    accuracy, z2 = correct / total, Z * Z / total
    middle = (accuracy + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(accuracy * (1 - accuracy) / total + z2 / total / 4)
    return max(0.0, middle - half), min(1.0, middle + half)  # despite rounding


def calibration_error(confidence: NDArray[Any], correct: NDArray[Any]) -> float:
    """Return the expected calibration error: the mean distance between confidence and accuracy.

    It is taken over bins of equal width (Guo et al. 2017, "On Calibration of Modern Neural
    Networks"). 0 means that of all predictions with a confidence of 0.8, 80 % are correct.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, correct - confidence)).sum() / len(correct))


def compute_metrics(probabilities: Tensor, labels: Tensor, classes: list[str]) -> Metrics:
    """Compare N×C probabilities, N at least 1, with the N true labels. Proportions are 0 to 1.

    The names are those of scikit-learn's classification_report. The recall of a class without
    photos and the precision of a class without predictions are None; averages leave them out.
    """
    probs, targets = np.asarray(probabilities), np.asarray(labels)
    predicted = probs.argmax(1)
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (targets, predicted), 1)
    correct, support, predictions = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    parts, wholes = (correct, correct, 2 * correct), (predictions, support, predictions + support)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        table = np.divide(parts, wholes).T

    def row(values: NDArray[Any], photos: int) -> Scores:
        precision, recall, f1 = (None if math.isnan(value) else value for value in values.tolist())
        return {"precision": precision, "recall": recall, "f1-score": f1, "support": photos}

    rows = zip(classes, table, support.tolist(), strict=True)
    metrics: Metrics = {
        "photos": len(targets),
        "accuracy": float((predicted == targets).mean()),
        "accuracy_95": interval(int(correct.sum()), len(targets)),
        "calibration_error": calibration_error(probs.max(1), predicted == targets),
        "classes": {name: row(values, photos) for name, values, photos in rows},
        "macro avg": row(np.nanmean(table, 0), len(targets)),
        "confusion": confusion.tolist(),
    }
    if len(classes) >= MIN_CLASSES_FOR_TOP_5:
        likeliest = np.argpartition(probs, -5)[:, -5:]
        metrics["top-5"] = float((likeliest == targets[:, None]).any(1).mean())
    return metrics


def format_metrics(metrics: Metrics, photos: str = "validation photos") -> str:
    """Return the metrics as a few lines of text; `photos` names the photos."""
    count, accuracy = metrics["photos"], metrics["accuracy"]
    photos = photos if count > 1 else photos.replace("photos", "photo", 1)
    lines = [f"accuracy {accuracy:.4f} on {count} {photos} ({format_interval(accuracy, count)})"]
    if "top-5" in metrics:
        lines.append(f"top-5 accuracy {format_accuracy(metrics['top-5'], count)}")
    if count >= MIN_FOR_PERCENTAGE:
        lines.append(f"calibration error {metrics['calibration_error']:.3f}")
    rows = [(printable(name), *cells) for name, *cells in format_classes(metrics, ".3f")]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        name, _, *scores = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        columns = (f"{score} {cell}" for score, cell in zip(SCORES, scores, strict=True))
        noun = "photo" if row[1] == "1" else "photos"
        lines.append("  ".join((name, *columns, f"({row[1]} {noun})")))
    return "\n".join(lines)


def format_classes(metrics: Metrics, number: str) -> list[tuple[str, str, str, str, str]]:
    """Return each class, its number of photos, precision, recall and f1-score, as text.

    `number` is the format of a proportion, such as ".1%".
    """
    confusion = np.array(metrics["confusion"])
    diagonal, support, predictions = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    f1 = [row["f1-score"] for row in metrics["classes"].values()]
    counts = zip(metrics["classes"], diagonal, support, predictions, f1, strict=True)
    return [
        (
            name,
            str(n),
            format_share(correct, predicted, number),
            format_share(correct, n, number),
            "–" if min(n, predicted) < MIN_FOR_PERCENTAGE else format(score, number),
        )
        for name, correct, n, predicted, score in counts
    ]


def format_share(correct: int, total: int, number: str) -> str:
    """Return a proportion as text; for few photos their count and interval, for none "–"."""
    if total >= MIN_FOR_PERCENTAGE:
        return format(correct / total, number)
    if not total:
        return "–"
    low, high = interval(correct, total)
    return f"{correct} of {total} ({low:{number}} to {high:{number}})"


def format_accuracy(accuracy: float, photos: int) -> str:
    """Return an accuracy as text, with its confidence interval."""
    return f"{accuracy:.4f} ({format_interval(accuracy, photos)})"


def format_interval(accuracy: float, photos: int) -> str:
    """Return the confidence interval of an accuracy as text; for few photos, also their count."""
    correct = round(accuracy * photos)
    low, high = interval(correct, photos)
    count = f"{correct} of {photos} photos, " if photos < MIN_FOR_PERCENTAGE else ""
    return f"{count}95 % confidence interval {low:.3f} to {high:.3f}"
