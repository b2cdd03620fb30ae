"""The figures of a report: learning curves, and the photos that the model got most wrong."""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simplestack.serving import images
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.model import Classifier

MAX_WORST = 12  # photos in the report
CONFIDENT = 0.9  # probability of the true class; photos with at least that aren't in the report
WIDTH, HEIGHT, MARGIN = 460, 220, 40  # of a chart, in SVG units
HEAT, OPACITY = (225, 60, 0), 0.7  # of the class activation map, as on the service's page


class Chart(NamedTuple):
    """The curves of a metric over the epochs, in the units of an SVG."""

    name: str
    curves: dict[str, list[tuple[float, float]]]  # "training" and "validation": points (x, y)
    served: float  # x of the epoch that is served
    epochs: tuple[float, float]  # the first and the last
    range: tuple[float, float]  # of the y axis


class Figure(NamedTuple):
    """Pictures side by side, as data URLs."""

    caption: str
    images: list[str]


def chart(checkpoint: Checkpoint, name: str) -> Chart:
    """Return the chart of a metric, "accuracy" or "loss"."""
    history = checkpoint.history
    epochs = [row["epoch"] for row in history]
    training, validation = ([row[key] for row in history] for key in (name, f"val_{name}"))
    low, high = 0.0, max(training + validation)
    if name == "accuracy":  # a scale that doesn't exaggerate
        low, high = np.floor(10 * min(training + validation + [0.9])) / 10, 1.0
    x = np.interp(epochs, [epochs[0], epochs[-1]], [MARGIN, WIDTH - MARGIN]).tolist()

    def points(values: list[float]) -> list[tuple[float, float]]:
        y = np.interp(values, [low, high], [HEIGHT - MARGIN, MARGIN]).tolist()
        return list(zip(x, y, strict=True))

    curves = {"training": points(training), "validation": points(validation)}
    served = x[history.index(checkpoint.best_row)]
    return Chart(name, curves, served, (epochs[0], epochs[-1]), (low, high))


def worst_photos(
    model: Classifier, classes: list[str], val: Photos, probabilities: Tensor
) -> list[Figure]:
    """Return the photos with the lowest probability of the true class, and their activation maps.

    `probabilities` are N×C. Photos that are classified correctly with CONFIDENT are left out.
    """
    of_target = probabilities[torch.arange(len(val)), val.labels]
    worst = [i for i in of_target.argsort()[:MAX_WORST].tolist() if of_target[i] < CONFIDENT]
    figures = []
    for i in worst:
        photo = val[i]
        with torch.inference_mode():
            cams = model.explain(photo[None])[1][0]
        label, predicted = int(val.labels[i]), int(probabilities[i].argmax())
        verdict = "correct" if predicted == label else f"taken for {classes[predicted]}"
        caption = (
            f"{val.names[i]}: {classes[label]}, {verdict},"
            f" with a probability of {probabilities[i, predicted]:.2f}"
        )
        pair = (np.asarray(photo), heat(photo, cams[predicted]))
        figures.append(Figure(caption, [images.data_url(pixels) for pixels in pair]))
    return figures


def heat(photo: Tensor, cam: Tensor) -> Any:
    """Return a 224×224×3 uint8 photo in grey, with its 7×7 class activation map over it in red."""
    size = (photo.shape[1], photo.shape[0])
    positive = np.asarray(cam.clamp(min=0) / cam.max().clamp(min=1e-6), dtype=np.float32)
    mask = Image.fromarray(positive).resize(size, Image.Resampling.BICUBIC)
    opacity = OPACITY * np.asarray(mask).clip(0, 1)[..., None]
    grey = np.asarray(photo).mean(axis=2, keepdims=True)
    return (grey * (1 - opacity) + np.array(HEAT) * opacity).astype(np.uint8)
