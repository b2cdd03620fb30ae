"""Write the report of a checkpoint into the folder beside it: report.html, and tables for programs.

It is made from the checkpoint and its photos alone: python -m simplestack report NAME.ckpt
"""

import csv
import io
import json
import sys
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from torch import Tensor

from simplestack.files import write_atomically
from simplestack.report import confidence, figures, label_check, learning_curve
from simplestack.serving.errors import StackError, printable
from simplestack.serving.site import title
from simplestack.training import checkpoint, folders
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.console import name_epoch
from simplestack.training.dataset import GB, Photos
from simplestack.training.distributed import World
from simplestack.training.evaluate import evaluate
from simplestack.training.folders import class_of
from simplestack.training.metrics import (
    MIN_FOR_PERCENTAGE,
    Metrics,
    compute_metrics,
    format_classes,
    format_metrics,
)
from simplestack.training.model import Classifier
from simplestack.training.options import Options, command
from simplestack.training.recipes import RECIPES

MAX_SKIPPED = 1000  # skipped files on the page
MAX_MATRIX = 30  # classes, at most, for the whole confusion matrix; else its largest numbers
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    finalize=lambda value: printable(value) if type(value) is str else value,
)
TEMPLATES.filters["percent"] = "{:.1%}".format
TEMPLATES.globals |= {
    "width": figures.WIDTH,
    "height": figures.HEIGHT,
    "margin": figures.MARGIN,
    "confident": figures.CONFIDENT,
    "resamples": confidence.RESAMPLES,
    "duplicate_similarity": label_check.DUPLICATE_SIMILARITY,
    "min_for_percentage": MIN_FOR_PERCENTAGE,
    "max_matrix": MAX_MATRIX,
    "max_skipped": MAX_SKIPPED,
}


def page(path: Path) -> Path:
    """Return the path of the report on the checkpoint `path`."""
    return path.with_suffix("") / "report.html"


def write(path: Path) -> Checkpoint:
    """Write the report on a checkpoint, and return that.

    Raises StackError if the checkpoint or one of its photos can't be read.
    """
    state, text = checkpoint.load(path), io.StringIO()
    writer = csv.DictWriter(text, state.history[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(state.history)
    _write(page(path).with_name("history.csv"), text.getvalue())
    data_dir = Path(state.arguments["data_dir"])
    val = Photos(data_dir, state.photos["val"], state.classes, whole=False)
    curves = ("accuracy", "loss") if len(state.history) > 1 else ()  # one point is no curve
    probe = RECIPES[state.arguments["recipe"]].linear_probe
    train = Photos(data_dir, state.photos["train"], state.classes, whole=False)
    learns = probe and not state.arguments["from_scratch"] and len(state.features)
    details = {
        "charts": [figures.chart(state, name) for name in curves],
        "check": label_check.find(state, data_dir) if len(state.features) else None,
        "features_of": "before fine-tuning" if probe else f"in epoch {state.best_epoch}",
        "curve": learns and learning_curve.measure(state, train.labels, val.labels),
        "confidence": confidence.measure(state.val_logits, val.labels),
        "skipped": state.skipped,
    }
    write_page(page(path), state, val, state.val_logits, details)
    return state


def evaluate_checkpoint(options: Options, state: Checkpoint) -> None:
    """Print the metrics of a checkpoint on its validation photos, or on those in another folder.

    For another folder, also write a report, beside that of the training.
    """
    data_dir, names = options.data_dir, state.photos["val"]
    is_own = data_dir.resolve() == Path(state.arguments["data_dir"]).resolve()
    unexpected: list[str] = []
    if not is_own:
        folder = folders.scan(data_dir)
        names, unexpected = folders.find_labelled(folder, state.classes), folder.unexpected
    world = World.start(options.device, RECIPES[options.recipe].mixed_precision)
    photos = Photos(data_dir, names, state.classes, whole=False)
    photos.load(options.cache * GB, world.device)
    if not len(photos):
        raise StackError(f"no photo in {data_dir} can be used: {photos.broken[0]}")
    model = load_best(state).to(world.device)
    _, logits = evaluate(model, photos, world)
    world.stop()
    if world.rank:
        return
    if is_own:
        for line in photos.broken:
            print(f"warning: skipped {printable(line)}", file=sys.stderr)
        metrics = compute_metrics(logits.softmax(1), photos.labels, state.classes)
        print(format_metrics(metrics))
        return
    report = page(options.output).parent / f"evaluated-{data_dir.resolve().name}" / "report.html"
    details = {"measured_on": str(data_dir), "skipped": photos.broken + unexpected}
    metrics = write_page(report, state, photos, logits, details)
    print(f"{format_metrics(metrics, f'photos in {data_dir}')}\nreport: {report}")


def load_best(state: Checkpoint) -> Classifier:
    """Return the model of the best epoch, on the CPU."""
    model = Classifier(len(state.classes))
    model.load_state_dict(state.best)
    return model.to(memory_format=torch.channels_last).eval()


def write_page(
    path: Path, state: Checkpoint, photos: Photos, logits: Tensor, details: dict[str, Any]
) -> Metrics:
    """Write report.html, and metrics.json and args.json beside it; return the metrics.

    `logits` are N×C; `details` has the other variables of the template.
    """
    classes, probabilities = state.classes, logits.softmax(1)
    metrics = compute_metrics(probabilities, photos.labels, classes)
    for name, content in (("metrics", metrics), ("args", state.arguments)):
        _write(path.with_name(f"{name}.json"), json.dumps(content, indent=2) + "\n")
    text = TEMPLATES.get_template("report.html.j2").render(
        title=title(classes),
        name=f"{path.parent.name}{checkpoint.SUFFIX}",
        date=f"{datetime.now():%Y-%m-%d}",
        checkpoint=state,
        best=name_epoch(state.best_epoch, state.epoch),
        metrics=metrics,
        rows=format_classes(metrics, ".1%"),
        training=Counter(class_of(name, classes) for name in state.photos["train"]),
        confusions=confusions(metrics),
        figures=figures.worst_photos(load_best(state), classes, photos, probabilities),
        command=command(state.arguments),
        duration=timedelta(seconds=round(sum(row["seconds"] for row in state.history))),
        **details,
    )
    _write(path, text)
    return metrics


def confusions(metrics: Metrics) -> list[tuple[str, str, int]]:
    """Return the most frequent confusions: true class, predicted class, number of photos."""
    classes, counts = list(metrics["classes"]), np.array(metrics["confusion"])
    np.fill_diagonal(counts, 0)
    largest = counts.argsort(axis=None, kind="stable")[::-1][:MAX_MATRIX]
    places = np.stack(np.unravel_index(largest, counts.shape), 1).tolist()
    return [(classes[i], classes[j], int(counts[i, j])) for i, j in places if counts[i, j]]


def _write(path: Path, text: str) -> None:
    with write_atomically(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # file names may not be UTF-8
