import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import ODD_NAME, odd_names, run, split_folder, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, metrics, report


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what lies beside it."""
    folder = tmp_path_factory.mktemp("report")
    photos = split_folder(folder / "photos <b>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(weights(folder / "torch")))
        run(folder / "a.ckpt", "--data-dir", photos, "--epochs", 1)
    return folder / "a.ckpt"


@pytest.fixture(scope="module")
def page(trained: Path) -> str:
    return (trained.parent / "a" / "report.html").read_text()


def test_history_has_a_row_for_every_epoch(trained: Path) -> None:
    with (trained.parent / "a" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]


def test_metrics_hold_what_was_measured(trained: Path) -> None:
    measured = json.loads((trained.parent / "a" / "metrics.json").read_text())
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
def test_a_photo_whose_name_is_no_text_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(weights(tmp_path / "torch")))
    photos = split_folder(tmp_path / "photos")
    photo = photos / "val" / "ants" / "0.png"
    photo.rename(photo.with_name(f"{ODD_NAME}.png"))
    run(tmp_path / "a.ckpt", "--data-dir", photos, "--freeze")
    assert r"caf\udce9.png" in (tmp_path / "a" / "report.html").read_text()


def test_evaluate_prints_the_metrics(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--evaluate", "-c", str(trained), "--device", "cpu"])
    printed = capsys.readouterr().out
    assert re.search(r"accuracy 1\.0000 on 4 validation photos", printed)
    assert "ants  precision 1.000  recall 1.000  (2 photos)" in printed


def test_the_confidence_interval_is_wilsons() -> None:
    assert metrics.interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_a_perfect_score_still_has_an_interval() -> None:
    assert metrics.interval(10, 10)[0] == pytest.approx(0.7225, abs=1e-4)


def test_calibration_error_is_the_distance_between_confidence_and_accuracy() -> None:
    confidence, right = np.full(10, 0.85), np.arange(10) < 6
    assert metrics.calibration_error(confidence, right) == pytest.approx(0.25)


def test_precision_and_recall_of_each_class() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    measured = metrics.compute_metrics(probabilities, [0, 0, 1, 1], ["a", "b"])
    assert measured["confusion"] == [[1, 1], [0, 2]]
    assert measured["classes"]["a"] == {"photos": 2, "precision": 1, "recall": 0.5}
    assert measured["classes"]["b"]["precision"] == pytest.approx(2 / 3)


def test_heat_lies_where_the_network_looked() -> None:
    cam = torch.zeros(7, 7)
    cam[0, 0] = 1
    shown = report.heat(torch.zeros(224, 224, 3, dtype=torch.uint8), cam)
    assert shown[5, 5, 0] > 100
    assert shown[200, 200, 0] == 0


def test_tensorboard_reads_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(weights(tmp_path / "torch")))
    photos, path = split_folder(tmp_path / "photos"), tmp_path / "a.ckpt"
    state = run(path, "--data-dir", photos, "--epochs", 1, "--tensorboard")
    events = EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload()
    logged = [(scalar.step, scalar.value) for scalar in events.Scalars("val_loss")]
    assert logged == [(row["epoch"], pytest.approx(row["val_loss"])) for row in state.history]


def test_tensorboard_that_is_not_installed_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(StackError, match="pip install tensorboard"):
        run(tmp_path / "a.ckpt", "--tensorboard")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_measured_again_gives_the_same(trained: Path) -> None:
    assert checkpoint.load(trained).best_accuracy == 1
