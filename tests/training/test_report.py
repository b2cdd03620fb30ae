"""What lies beside a checkpoint: history, metrics, the page, TensorBoard's events."""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ODD_NAME, odd_names, run_training, split_folder, train_in_process
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, report
from simplestack.training.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def page(tuned: Path) -> str:
    return (tuned.parent / "a" / "report.html").read_text()


def test_history_has_a_row_for_every_epoch(tuned: Path) -> None:
    with (tuned.parent / "a" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]


def test_metrics_hold_what_was_measured(tuned: Path) -> None:
    measured = json.loads((tuned.parent / "a" / "metrics.json").read_text())
    assert measured["photos"] == 4
    assert set(measured["classes"]) == {"ants", "bees"}


def test_the_page_needs_nothing_beside_it(page: str) -> None:
    assert set(re.findall(r'(?:src|href)="(.{10})', page)) == {"data:image"}
    assert "<script" not in page
    assert "url(" not in page


def test_the_page_shows_curves_and_photos(page: str) -> None:
    assert page.count("<svg") == 2
    assert page.count("<figure>") == 4


def test_the_page_escapes_names(page: str) -> None:
    assert "<b>" not in page


@odd_names
def test_a_photo_whose_name_is_no_text_is_shown(tmp_path: Path) -> None:
    photos = split_folder(tmp_path / "photos")
    photo = photos / "val" / "ants" / "0.png"
    photo.rename(photo.with_name(f"{ODD_NAME}.png"))
    train_in_process(tmp_path / "a.ckpt", "--data-dir", photos, "--freeze")
    assert r"caf\udce9.png" in (tmp_path / "a" / "report.html").read_text()


def test_evaluate_prints_the_metrics(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_training("--evaluate", "-c", tuned, "--device", "cpu")
    printed = capsys.readouterr().out
    assert re.search(r"accuracy 1\.0000 on 4 validation photos", printed)
    assert "ants  precision 1.000  recall 1.000  f1-score 1.000  (2 photos)" in printed


def test_heat_lies_where_the_network_looked() -> None:
    cam = torch.zeros(7, 7)
    cam[0, 0] = 1
    shown = report.heat(torch.zeros(224, 224, 3, dtype=torch.uint8), cam)
    assert shown[5, 5, 0] > 100
    assert shown[200, 200, 0] == 0


def test_tensorboard_reads_what_was_logged(tuned: Path) -> None:
    history = checkpoint.load(tuned).history
    events = EventAccumulator(str(tuned.parent / "a" / "tensorboard")).Reload()
    logged = [(scalar.step, scalar.value) for scalar in events.Scalars("val_loss")]
    assert logged == [(row["epoch"], pytest.approx(row["val_loss"])) for row in history]


def test_tensorboard_that_is_not_installed_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(StackError, match="pip install tensorboard"):
        train_in_process(tmp_path / "a.ckpt", "--tensorboard")
    assert not list(tmp_path.iterdir())


def test_best_accuracy_is_kept_in_the_checkpoint(tuned: Path) -> None:
    assert checkpoint.load(tuned).best_accuracy == 1


def test_a_name_cannot_control_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = split_folder(tmp_path / "photos")
    for split in ("train", "val"):
        (photos / split / "ants").rename(photos / split / "ants\x1b[31m")
    train_in_process(tmp_path / "a.ckpt", "--data-dir", photos, "--freeze")
    run_training("-c", tmp_path / "a.ckpt", "--evaluate")
    printed = capsys.readouterr()
    page = (tmp_path / "a" / "report.html").read_text()
    for text in (printed.out + printed.err, page):
        assert "\x1b[31m" not in text
        assert r"ants\x1b[31m" in text


def test_a_report_of_1000_classes_is_small_and_shows_the_worst_confusions() -> None:
    classes = [f"class {i}" for i in range(1000)]
    confusion = np.diag(np.full(1000, 5))
    confusion[3, 7] = 4
    row = {"precision": 1.0, "recall": 1.0, "f1-score": 1.0, "support": 5}
    metrics = {"classes": dict.fromkeys(classes, row), "confusion": confusion.tolist()}
    assert report.confusions(metrics) == [("class 3", "class 7", 4)]
    metrics |= {"accuracy": 1.0, "accuracy_95": (0.9, 1.0), "photos": 5000}
    page = report.TEMPLATES.get_template("report.html.j2").render(
        metrics={**metrics, "calibration_error": 0.0},
        checkpoint=Checkpoint(
            classes, {}, {}, "", {}, history=[{"epoch": 1, "val_accuracy": 1, "val_loss": 1}]
        ),
        confusions=report.confusions(metrics),
        matrix=report.MATRIX,
    )
    assert len(page) < 2_000_000
    assert "<tr><th>class 3<th>class 7<td>4" in page
