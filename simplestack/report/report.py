"""Write what lies beside a checkpoint: history, arguments, metrics, skipped.txt, report.html."""

import csv
import io
import json
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from torch import Tensor

from simplestack.files import write_atomically
from simplestack.report import figures, label_check
from simplestack.serving.errors import StackError, printable
from simplestack.training import dataset
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.console import name_epoch
from simplestack.training.dataset import Photos
from simplestack.training.folders import class_of
from simplestack.training.metrics import FEW, compute_metrics, format_classes, format_metrics
from simplestack.training.model import Classifier
from simplestack.training.options import command

NAMED = 3, 5  # classes in the title: of many, and the most that are all named
LISTED = 1000  # skipped files on the page
SKIPPED = "skipped.txt"
MATRIX = 30  # classes of which the whole confusion matrix is shown; of more, its largest numbers
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    finalize=lambda value: printable(value) if type(value) is str else value,
)
TEMPLATES.filters["percent"] = "{:.1%}".format
TEMPLATES.globals |= {"width": figures.WIDTH, "height": figures.HEIGHT, "margin": figures.MARGIN}
TEMPLATES.globals |= {"matrix": MATRIX, "few": FEW, "sure": figures.SURE, "listed": LISTED}
TEMPLATES.globals["alike"] = label_check.ALIKE


def report_folder(path: Path) -> Path:
    """Return the folder beside the checkpoint `path` for all that is written about it."""
    return path.with_suffix("")


def page(path: Path) -> Path:
    """Return the report of the checkpoint `path`."""
    return report_folder(path) / "report.html"


def is_complete(path: Path, checkpoint: Checkpoint, epochs: int) -> bool:
    """Return whether a run is over, and reported."""
    return checkpoint.epoch >= epochs and page(path).exists()


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


def write_skipped(folder: Path, skipped: list[str], resumed: Path | None = None) -> Path | None:
    """Write skipped.txt into a report's folder, one line per file; return its path, if any.

    A run never opens again what the one that it resumes has skipped, so it keeps those lines.
    """
    if resumed:
        skipped = [*read_skipped(report_folder(resumed)), *skipped]
    path = folder / SKIPPED
    if not skipped:
        path.unlink(missing_ok=True)
        return None
    _write(path, "".join(f"{line}\n" for line in dict.fromkeys(map(printable, skipped))))
    return path


def read_skipped(folder: Path) -> list[str]:
    """Return the lines of a report's skipped.txt; none if nothing was skipped."""
    path = folder / SKIPPED
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def write_report(
    path: Path,
    checkpoint: Checkpoint,
    model: Classifier,
    val: Photos,
    logits: Tensor,
    *,
    suspicious: dict[str, Any] | None = None,
    folder: Path | None = None,
    on: str = "",
) -> dict[str, Any]:
    """Write metrics.json, args.json and report.html about a checkpoint; return the metrics.

    `model` is that of the best epoch, `logits`, N×C, are its answers to the photos: to those for
    validation, or to any others of its classes, whose files go into `folder` instead of beside the
    checkpoint, at `path`. `suspicious` is what `suspects` has found; `on` names the device of the
    training.
    """
    into, classes = folder or report_folder(path), checkpoint.classes
    probabilities = logits.softmax(1)
    metrics = compute_metrics(probabilities, val.labels, classes)
    for name, content in (("metrics", metrics), ("args", checkpoint.arguments)):
        _write(into / f"{name}.json", json.dumps(content, indent=2) + "\n")
    curves = not folder and len(checkpoint.history) > 1  # one point is no curve
    text = TEMPLATES.get_template("report.html.j2").render(
        title=title(classes),
        name=path.name,
        date=f"{datetime.now():%Y-%m-%d}",
        measured_on=str(val.data_dir) if folder else None,
        checkpoint=checkpoint,
        best=name_epoch(checkpoint.best_epoch, checkpoint.epoch),
        metrics=metrics,
        rows=format_classes(metrics, ".1%"),
        training=Counter(class_of(name, classes) for name in checkpoint.photos["train"]),
        confusions=confusions(metrics),
        charts=[figures.chart(checkpoint, name) for name in ("accuracy", "loss") if curves],
        figures=figures.worst_photos(model, classes, val, probabilities),
        suspicious=suspicious,
        skipped=read_skipped(into),
        command=command(checkpoint.arguments),
        duration=timedelta(seconds=round(sum(row["seconds"] for row in checkpoint.history))),
        on=on,
    )
    _write(into / "report.html", text)
    return metrics


def report_evaluation(
    path: Path,
    checkpoint: Checkpoint,
    model: Classifier,
    photos: Photos,
    logits: Tensor,
    *,
    validation: bool,
) -> str:
    """Return the metrics as text; of other photos than those for `validation`, write a report, too.

    It goes into a folder of its own beside the checkpoint's.
    """
    if validation:
        return format_metrics(compute_metrics(logits.softmax(1), photos.labels, checkpoint.classes))
    folder = report_folder(path) / f"evaluated-{photos.data_dir.resolve().name}"
    write_skipped(folder, dataset.skipped(photos))
    measured = write_report(path, checkpoint, model, photos, logits, folder=folder)
    said = format_metrics(measured, f"photos in {photos.data_dir}")
    return f"{said}\nreport: {folder / 'report.html'}"


def title(classes: list[str]) -> str:
    """Return a heading that names the classes, as the page of the service does."""
    some, most = NAMED
    if len(classes) > most:
        return f"{len(classes)} classes of photos: {', '.join(classes[:some])} …"
    names = f"{', '.join(classes[:-1])} or {classes[-1]}?"
    return names[0].upper() + names[1:]


def _write(path: Path, text: str) -> None:
    with write_atomically(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # file names may not be UTF-8


def confusions(metrics: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Return the most frequent confusions: true class, predicted class, how many photos."""
    classes, counts = list(metrics["classes"]), np.array(metrics["confusion"])
    np.fill_diagonal(counts, 0)
    largest = counts.argsort(axis=None, kind="stable")[::-1][:MATRIX]
    places = np.stack(np.unravel_index(largest, counts.shape), 1).tolist()
    return [(classes[i], classes[j], int(counts[i, j])) for i, j in places if counts[i, j]]
