"""What people look at after a training: history.csv, metrics.json, report.html."""

import base64
import contextlib
import csv
import html
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simplestack.serving.errors import StackError
from simplestack.training import metrics, model
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.data import Photos
from simplestack.training.engine import Engine
from simplestack.training.recipe import RECIPES

WORST = 12  # photos shown
WIDTH, HEIGHT = 460, 220  # of a chart, in SVG units
MARGIN = 40
HEAT = np.array([225, 60, 0])  # RGB, where the network looked
COLOURS = {"training": "#b8860b", "validation": "#1f5fa8"}

Inference = tuple[dict[str, Any], Tensor]
"""The metrics and the N×C probabilities that they were computed from."""


def folder_of(path: Path) -> Path:
    """Return the folder beside a checkpoint for all that is written about it."""
    return path.with_suffix("")


def write_history(path: Path, state: Checkpoint) -> None:
    """Write history.csv, one row an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, state.history[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(state.history)
    _write(folder_of(path) / "history.csv", text.getvalue())


def tensorboard_writer() -> Any:
    """Return PyTorch's SummaryWriter. Raises StackError if TensorBoard isn't installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (optional)
    except ImportError as error:
        raise StackError(
            "--tensorboard needs a package that isn't installed: pip install tensorboard"
        ) from error
    return SummaryWriter


def log_tensorboard(path: Path, row: dict[str, float]) -> None:
    """Log an epoch for TensorBoard. Raises StackError if it isn't installed."""
    with tensorboard_writer()(folder_of(path) / "tensorboard") as writer:
        for name, value in row.items():
            writer.add_scalar(name, value, int(row["epoch"]))


def best_network(state: Checkpoint, engine: Engine) -> model.Classifier:
    """Build the network with its best weights."""
    network = model.Classifier(len(state.classes))
    network.load_state_dict(state.best)
    return network.to(memory_format=torch.channels_last).to(engine.device).eval()


def measure(network: model.Classifier, state: Checkpoint, engine: Engine, val: Photos) -> Inference:
    """Measure a network in the numerics that it was trained in: as after its epoch."""
    with engine.autocast(RECIPES[state.arguments["recipe"]].bfloat16):
        logits = engine.run(network, val)
    probabilities = torch.softmax(logits, 1)
    return metrics.measure(probabilities, val.labels, state.classes), probabilities


def evaluate(state: Checkpoint, engine: Engine, val: Photos) -> dict[str, Any]:
    """Return the metrics of the best weights."""
    return measure(best_network(state, engine), state, engine, val)[0]


def write(path: Path, state: Checkpoint, engine: Engine, val: Photos) -> dict[str, Any]:
    """Write metrics.json and report.html beside the checkpoint `path`; return the metrics."""
    network = best_network(state, engine)
    measured, probabilities = measure(network, state, engine, val)
    _write(folder_of(path) / "metrics.json", json.dumps(measured, indent=2) + "\n")
    shown = worst(network, state, val, probabilities)
    _write(folder_of(path) / "report.html", page(path.name, state, measured, shown))
    return measured


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # of odd file names
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            part.unlink()
        raise StackError(
            f"can't write {path} ({error.strerror}): make room there; the checkpoint is safe"
        ) from error


def worst(
    network: model.Classifier, state: Checkpoint, val: Photos, probabilities: Tensor
) -> list[tuple[str, str]]:
    """Show the photos whose true class got the least probability: image tags and captions."""
    of_truth = probabilities[torch.arange(len(val)), torch.tensor(val.labels)]
    chosen = of_truth.argsort()[:WORST].tolist()
    photos = torch.stack([val[i, None][0] for i in chosen])
    with torch.inference_mode():
        maps = network.explain(photos.to(network.mean.device))[1].cpu()
    shown = []
    for i, photo, cams in zip(chosen, photos.cpu(), maps, strict=True):
        label, answer = val.labels[i], int(probabilities[i].argmax())
        caption = (
            f"{val.names[i]}: {state.classes[label]}, taken for {state.classes[answer]}"
            if answer != label
            else f"{val.names[i]}: {state.classes[label]}, rightly"
        )
        shown.append(
            (
                _image(photo.numpy()) + _image(heat(photo, cams[answer])),
                f"{caption}, with a probability of {probabilities[i, answer]:.2f}",
            )
        )
    return shown


def heat(photo: Tensor, cam: Tensor) -> Any:
    """Lay a class activation map, 7×7, in red over its photo, 224×224×3 uint8, in grey."""
    size = (photo.shape[1], photo.shape[0])
    positive = cam.clamp(min=0) / cam.max().clamp(min=1e-6)
    mask = Image.fromarray(np.asarray(positive, dtype=np.float32)).resize(
        size, Image.Resampling.BICUBIC
    )
    share = 0.7 * np.asarray(mask).clip(0, 1)[..., None]
    grey = np.asarray(photo).mean(axis=2, keepdims=True)
    return (grey * (1 - share) + HEAT * share).astype(np.uint8)


def _image(pixels: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


def page(
    name: str, state: Checkpoint, measured: dict[str, Any], shown: list[tuple[str, str]]
) -> str:
    """Make report.html: one page that needs nothing beside it."""
    note = f"<p class=note>{html.escape(state.notice)}</p>" if state.notice else ""
    arguments = "".join(
        f"<tr><th>{html.escape(key)}<td>{html.escape(str(value))}"
        for key, value in {**state.arguments, **state.versions}.items()
    )
    figures = "".join(
        f"<figure>{images}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for images, caption in shown
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(name)}</title>
<style>{STYLE}</style>
<main>
<h1>{html.escape(name)}</h1>
{note}
<p class=big>{measured["accuracy"]:.1%}</p>
<p>of {measured["photos"]} validation photos are recognised; with 95 % confidence between
{measured["accuracy_95"][0]:.1%} and {measured["accuracy_95"][1]:.1%} of such photos. The weights
are those of epoch {state.best_epoch} of {state.epoch}, chosen on the same photos as the best, which
flatters them a little.</p>
<h2>Learning</h2>
<div class=row>{chart(state, "accuracy")}{chart(state, "loss")}</div>
<h2>Classes</h2>
<div class=row>{class_table(measured)}{confusion_table(measured)}</div>
<p>Calibration error {measured["calibration_error"]:.3f}: how far its confidence is from the share
of right answers, on average.</p>
<h2>The photos it got most wrong, or was least sure of</h2>
<p>Beside each, in red, where the network saw what it answered.</p>
<div class=row>{figures}</div>
<h2>How it was made</h2>
<table>{arguments}</table>
</main>
</html>
"""


def chart(state: Checkpoint, quantity: str) -> str:
    """Draw a quantity of training and validation over the epochs as an SVG."""
    epochs = [row["epoch"] for row in state.history]
    series = {
        "training": [row[quantity] for row in state.history],
        "validation": [row[f"val_{quantity}"] for row in state.history],
    }
    values = series["training"] + series["validation"]
    low, high = min(values), max(*values, min(values) + 1e-3)
    first, last = epochs[0], max(epochs[-1], epochs[0] + 1)

    def x(epoch: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * (epoch - first) / (last - first)

    def y(value: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / (high - low)

    lines = "".join(
        f'<polyline stroke="{COLOURS[name]}" points="'
        + " ".join(f"{x(e):.1f},{y(v):.1f}" for e, v in zip(epochs, line, strict=True))
        + '"/>'
        + "".join(
            f'<circle cx="{x(e):.1f}" cy="{y(v):.1f}" r="2.5" fill="{COLOURS[name]}"/>'
            for e, v in zip(epochs, line, strict=True)
        )
        for name, line in series.items()
    )
    labels = "".join(
        f'<text x="{MARGIN - 4}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.3f}</text>'
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        for v in (low, (low + high) / 2, high)
    ) + "".join(
        f'<text x="{x(e):.1f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{e:g}</text>'
        for e in dict.fromkeys((first, last))
    )
    legend = "".join(
        f'<text x="{MARGIN + 150 * i}" y="16" fill="{COLOURS[name]}">{name} {quantity}</text>'
        for i, name in enumerate(series)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{quantity} by epoch">'
        f'{labels}{lines}{legend}<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">epoch'
        "</text></svg>"
    )


def class_table(measured: dict[str, Any]) -> str:
    """Tabulate precision and recall of each class."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}<td>{row['photos']}<td>{row['precision']:.1%}"
        f"<td>{row['recall']:.1%}"
        for name, row in measured["classes"].items()
    )
    return f"<table><tr><th>class<th>photos<th>precision<th>recall{rows}</table>"


def confusion_table(measured: dict[str, Any]) -> str:
    """Tabulate the confusion matrix: a row for each true class, a column for each answer."""
    names = [html.escape(name) for name in measured["classes"]]
    rows = "".join(
        f"<tr><th>{name}"
        + "".join(
            f'<td style="background:rgb(31 95 168/{0.6 * n / max(1, sum(row)):.2f})">{n}'
            for n in row
        )
        for name, row in zip(names, measured["confusion"], strict=True)
    )
    head = "".join(f"<th>{name}" for name in names)
    return f"<table><caption>true class ↓ · answer →</caption><tr><th>{head}{rows}</table>"


STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:0;background:#fff;color:#1d2733}
main{max-width:1000px;margin:0 auto;padding:1rem}
h1{font-size:1.4rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid #ccd3da}
.big{font-size:3rem;font-weight:700;margin:0;line-height:1.2}
.note{background:#fff3cd;padding:.5rem 1rem;border-radius:6px}
.row{display:flex;flex-wrap:wrap;gap:1.5rem;align-items:flex-start}
table{border-collapse:collapse;overflow-x:auto}
caption{text-align:left;color:#566}
th,td{padding:.25rem .8rem;border:1px solid #ccd3da;text-align:right}
th{font-weight:600;text-align:left}
td{overflow-wrap:anywhere}
svg{width:100%;max-width:460px;font-size:12px}
svg line{stroke:#e3e7eb}
svg polyline{fill:none;stroke-width:2}
figure{margin:0;width:300px;max-width:100%}
figure img{width:50%;display:inline-block;vertical-align:top}
figcaption{font-size:.85rem;color:#455;overflow-wrap:anywhere}
"""
