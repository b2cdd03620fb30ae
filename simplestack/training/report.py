"""Write what lies beside a checkpoint: history.csv, args.json, metrics.json, report.html."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simplestack.serving.errors import StackError, printable
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.files import write_atomically
from simplestack.training.metrics import compute_metrics
from simplestack.training.model import Classifier

WORST = 12  # photos shown
MATRIX = 30  # classes of which the whole confusion matrix is shown; of more, its largest numbers
WIDTH, HEIGHT, MARGIN = 460, 220, 40  # of a chart, in SVG units
HEAT = np.array([225, 60, 0])  # RGB, for the class activation map
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    finalize=lambda value: printable(value) if type(value) is str else value,
)
TEMPLATES.filters["percent"] = "{:.1%}".format


def report_folder(path: Path) -> Path:
    """Return the folder beside the checkpoint `path` for all that is written about it."""
    return path.with_suffix("")


def is_complete(path: Path, checkpoint: Checkpoint, epochs: int) -> bool:
    """Return whether a run is over, and reported."""
    return checkpoint.epoch >= epochs and (report_folder(path) / "report.html").exists()


def write_history(path: Path, history: list[dict[str, float]], tensorboard: Any = None) -> None:
    """Write history.csv, one row per epoch, and log the last one for TensorBoard."""
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    _write(report_folder(path) / "history.csv", text.getvalue())
    if tensorboard:
        for name, value in history[-1].items():
            tensorboard.add_scalar(name, value, int(history[-1]["epoch"]))
        tensorboard.flush()


def summary_writer() -> Any:
    """Return PyTorch's SummaryWriter class. Raises StackError if TensorBoard isn't installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (optional)
    except ImportError as error:
        raise StackError(
            "--tensorboard needs a package that isn't installed: pip install tensorboard"
        ) from error
    return SummaryWriter


def write_report(
    path: Path, checkpoint: Checkpoint, model: Classifier, val: Photos, logits: Tensor
) -> dict[str, Any]:
    """Write metrics.json, args.json and report.html beside a checkpoint; return the metrics.

    `model` is that of the best epoch, `logits`, N×C, are its answers to the validation photos.
    """
    probabilities = logits.softmax(1)
    metrics = compute_metrics(probabilities, val.labels, checkpoint.classes)
    for name, content in (("metrics", metrics), ("args", checkpoint.arguments)):
        _write(report_folder(path) / f"{name}.json", json.dumps(content, indent=2) + "\n")
    trained = len(checkpoint.history) > 1  # one point is no curve
    page = TEMPLATES.get_template("report.html.j2").render(
        name=path.name,
        checkpoint=checkpoint,
        metrics=metrics,
        confusions=confusions(metrics),
        matrix=MATRIX,
        charts=[chart(checkpoint, name) for name in ("accuracy", "loss") if trained],
        figures=worst_photos(model, checkpoint.classes, val, probabilities),
        width=WIDTH,
        height=HEIGHT,
        margin=MARGIN,
    )
    _write(report_folder(path) / "report.html", page)
    return metrics


def _write(path: Path, text: str) -> None:
    try:
        with write_atomically(path) as file:
            file.write(text.encode(errors="backslashreplace"))  # file names may not be UTF-8
    except OSError as error:
        raise StackError(
            f"can't write {path} ({error.strerror}): make room there; the checkpoint is safe"
        ) from error


def chart(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Return the curves of a metric, "accuracy" or "loss", over the epochs, as points in an SVG."""
    history = checkpoint.history
    epochs = [row["epoch"] for row in history]
    values = {
        "training": [row[name] for row in history],
        "validation": [row[f"val_{name}"] for row in history],
    }
    shown = [v for v in (*values["training"], *values["validation"]) if np.isfinite(v)] or [0]
    low, high = 0.0, max(shown)
    if name == "accuracy":  # a scale that doesn't exaggerate
        low, high = np.floor(10 * min(*shown, 0.9)) / 10, 1.0
    x = np.interp(epochs, [epochs[0], epochs[-1]], [MARGIN, WIDTH - MARGIN])
    curves = {
        split: list(zip(x, np.interp(v, [low, high], [HEIGHT - MARGIN, MARGIN]), strict=True))
        for split, v in values.items()
    }
    served = x[history.index(checkpoint.best_row)]
    return {
        **{"name": name, "curves": curves, "served": served},
        **{"epochs": (epochs[0], epochs[-1]), "range": (low, high)},
    }


def confusions(metrics: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Return the most frequent confusions: true class, predicted class, how many photos."""
    classes, counts = list(metrics["classes"]), np.array(metrics["confusion"])
    np.fill_diagonal(counts, 0)
    largest = counts.argsort(axis=None, kind="stable")[::-1][:MATRIX]
    places = np.stack(np.unravel_index(largest, counts.shape), 1).tolist()
    return [(classes[i], classes[j], int(counts[i, j])) for i, j in places if counts[i, j]]


def worst_photos(
    model: Classifier, classes: list[str], val: Photos, probabilities: Tensor
) -> list[dict[str, Any]]:
    """Return captions and images of the photos whose true class got the lowest probability."""
    of_target = probabilities[torch.arange(len(val)), val.labels]
    worst = of_target.argsort()[:WORST].tolist()
    photos = torch.stack([val[i] for i in worst])
    with torch.inference_mode():
        maps = model.explain(photos.to(model.mean.device))[1].cpu()
    figures = []
    for i, photo, cams in zip(worst, photos.cpu(), maps, strict=True):
        label, predicted = int(val.labels[i]), int(probabilities[i].argmax())
        verdict = "correct" if predicted == label else f"taken for {classes[predicted]}"
        figures.append(
            {
                "caption": f"{val.names[i]}: {classes[label]}, {verdict},"
                f" with a probability of {probabilities[i, predicted]:.2f}",
                "images": [jpeg(np.asarray(photo)), jpeg(heat(photo, cams[predicted]))],
            }
        )
    return figures


def heat(photo: Tensor, cam: Tensor) -> Any:
    """Lay a class activation map, 7×7, in red over its photo, 224×224×3 uint8, in grey."""
    size = (photo.shape[1], photo.shape[0])
    positive = np.asarray(cam.clamp(min=0) / cam.max().clamp(min=1e-6), dtype=np.float32)
    mask = Image.fromarray(positive).resize(size, Image.Resampling.BICUBIC)
    opacity = 0.7 * np.asarray(mask).clip(0, 1)[..., None]
    grey = np.asarray(photo).mean(axis=2, keepdims=True)
    return (grey * (1 - opacity) + HEAT * opacity).astype(np.uint8)


def jpeg(pixels: Any) -> str:
    """Encode an H×W×3 image as a data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
