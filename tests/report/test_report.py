"""What lies beside a checkpoint: history, metrics, the page, TensorBoard's events."""

import csv
import html
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from helpers import ODD_NAME, odd_names, split_folder, write_pictures
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainings import (
    report_of_1000_classes,
    report_with_mistakes,
    run_training,
    same_weights,
    train_in_process,
)

from simplestack.report import label_check, report
from simplestack.training import checkpoint, dataset
from simplestack.training.dataset import Photos
from simplestack.training.model import Classifier

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def clean(photos, small, tmp_path_factory):  # noqa: ARG001
    """The folder beside the checkpoint of a run that gets all right, with TensorBoard's log."""
    path = tmp_path_factory.mktemp("clean") / "a.ckpt"
    train_in_process(path, "--data-dir", photos, "--epochs", 1, "--tensorboard")
    return path.with_suffix("")


@pytest.fixture(scope="module")
def report_path(small, tmp_path_factory):  # noqa: ARG001
    """The page about a training with a photo that it gets wrong, and files that it skips."""
    return report_with_mistakes(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(report_path):
    return report_path.read_text()


def test_history_metrics_arguments_and_tensorboards_log_lie_beside_the_page(clean):
    state = checkpoint.load(clean.with_suffix(".ckpt"))
    with (clean / "history.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == state.history
    measured = json.loads((clean / "metrics.json").read_text())
    assert (measured["photos"], measured["accuracy"]) == (4, state.best_accuracy)
    assert measured["confusion"] == [[2, 0], [0, 2]]
    assert set(measured["classes"]) == {"ants", "bees"}
    assert json.loads((clean / "args.json").read_text()) == state.arguments
    events = EventAccumulator(str(clean / "tensorboard")).Reload()
    logged = [(scalar.step, scalar.value) for scalar in events.Scalars("val_loss")]
    assert logged == [(row["epoch"], pytest.approx(row["val_loss"])) for row in state.history]


def test_the_page_needs_nothing_beside_it_and_escapes_names(page):
    assert set(re.findall(r'(?:src|href)="(.{10})', page)) == {"data:image"}
    for forbidden in ("<script", "url(", "<b>"):
        assert forbidden not in page


@odd_names
def test_a_photo_whose_name_is_no_text_is_shown(tmp_path):
    photos = split_folder(tmp_path / "photos")
    shutil.copy(photos / "train" / "bees" / "0.png", photos / "val" / "ants" / f"{ODD_NAME}.png")
    train_in_process(tmp_path / "a.ckpt", "--data-dir", photos, "--freeze")
    assert r"caf\udce9.png" in (tmp_path / "a" / "report.html").read_text()


def test_a_name_cannot_control_a_terminal(tmp_path, capsys):
    photos = split_folder(tmp_path / "photos")
    for split in ("train", "val"):
        (photos / split / "ants").rename(photos / split / "ants\x1b[31m")
    train_in_process(tmp_path / "a.ckpt", "--data-dir", photos, "--freeze")
    trained = capsys.readouterr()
    run_training("-c", tmp_path / "a.ckpt", "--evaluate")
    evaluated = capsys.readouterr()
    texts = (trained.out, evaluated.out, (tmp_path / "a" / "report.html").read_text())
    assert all(r"ants\x1b[31m" in text for text in texts)
    assert all("\x1b[31m" not in text for text in (*texts, trained.err, evaluated.err))


@pytest.mark.parametrize(
    ("classes", "title"),
    [
        (["cat", "dog", "élan"], "Cat, dog or élan?"),
        ([str(i) for i in range(102)], "102 classes of photos: 0, 1, 2 …"),
    ],
)
def test_the_title_names_the_classes(classes, title):
    assert report.title(classes) == title


def test_the_page_tells_of_the_run_and_its_photos(page):
    for pattern in (
        "<title>Ants or bees\\?</title>",
        r"<h1>Ants or bees\?</h1>\n<p class=quiet>\d{4}-\d\d-\d\d · a.ckpt</p>",
        "<tr><th>ants<td>5<td>3<td>2 of 2 .34.2% to 100.0%.<td>2 of 3 .20.8% to 93.9%.<td>–",
        "<tr><th>bees<td>5<td>2<td>2 of 3 .20.8% to 93.9%.<td>2 of 2 .34.2% to 100.0%.<td>–",
        "<tr><th>all<td>10<td>5<td>",
        r"<p class=big>4 of 5</p>\n<p>validation photos are classified correctly \(95%",
        r"<th>duration of training<td>0:00:\d\d",
        r"<th>device<td>\d+ CPU threads",
        f"<th>torch<td>{re.escape(torch.__version__)}",
        "val/ants/wrong.png: ants, taken for bees",
    ):
        assert re.search(pattern, page), pattern
    assert page.count("<svg") == 2
    assert "Calibration error" not in page  # of few photos


def test_the_command_on_the_page_repeats_the_run(report_path, page, tmp_path):
    _, script, *arguments = shlex.split(html.unescape(re.search(r"<pre>(.+)</pre>", page)[1]))
    assert script == "train.py"
    repeated = train_in_process(tmp_path / "a.ckpt", *arguments)
    first = checkpoint.load(report_path.parent.with_suffix(".ckpt"))
    assert same_weights(repeated.last, first.last)


def test_the_linear_probe_is_no_epoch(tmp_path, photos, clean):
    state = checkpoint.load(clean.with_suffix(".ckpt"))
    state.history[1] |= {"val_accuracy": 0.5}
    val = Photos(photos, state.photos["val"], state.classes, whole=False)
    logits = torch.eye(2)[val.labels]
    report.write_report(tmp_path / "a.ckpt", state, Classifier(2).eval(), val, logits)
    page = (tmp_path / "a" / "report.html").read_text()
    assert "The weights are those of the linear probe (before epoch 1), chosen as the best" in page


def test_what_was_skipped_is_listed_in_a_file_and_on_the_page(report_path, page):
    lines = (report_path.parent / "skipped.txt").read_text().splitlines()
    assert [Path(line.partition(": ")[0]).name for line in lines] == ["notes.txt", "broken.jpg"]
    assert lines[0].endswith("val/bees/notes.txt: not named like a photo")
    assert "<details><summary>2 files, with their reasons</summary>" in page
    assert [html.unescape(line) for line in re.findall("<li>(.+)", page)] == lines


def test_a_long_list_of_skipped_files_is_named_not_shown_on_the_terminal(tmp_path, capsys):
    photos, file = split_folder(tmp_path / "photos"), tmp_path / "a" / "skipped.txt"
    for i in range(30):
        (photos / "train" / "ants" / f"broken{i}.jpg").write_text("no photo")
    (photos / "val" / "ants" / "two\nlines.txt").write_text("")
    train_in_process(tmp_path / "a.ckpt", "--data-dir", photos, "--freeze")
    printed, lines = capsys.readouterr().err, file.read_text().splitlines()
    assert f"all that is skipped, with the reasons: {file}" in printed
    assert (printed.count("broken"), len(lines)) == (dataset.EXAMPLES, 31)
    run_training("-c", tmp_path / "a.ckpt", "--epochs", 1, "--device", "cpu")
    assert file.read_text().splitlines() == lines  # it didn't open them again


def test_no_list_is_left_if_nothing_is_skipped(tmp_path, photos, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "skipped.txt").write_text("of a run whose checkpoint was deleted")
    train_in_process(tmp_path / "a.ckpt", "--data-dir", photos, "--freeze")
    assert not (tmp_path / "a" / "skipped.txt").exists()
    assert "skipped" not in capsys.readouterr().err
    assert "skipped" not in (tmp_path / "a" / "report.html").read_text()


def section(page, heading):
    """Return what stands below a heading."""
    return page.partition(f"<h2>{heading}</h2>")[2].partition("<h2>")[0]


def test_a_page_without_wrong_photos_says_so(clean):
    page = (clean / "report.html").read_text()
    assert "<figure>" not in section(page, "The photos it got most wrong or was least sure of")
    assert "with a probability of at least 90%" in page
    assert "There are none." in section(page, "Photos that may have the wrong label")


def test_suspicious_photos_are_shown_also_after_a_resumed_run(page, report_path, tmp_path):
    wrong = section(page, "Photos that may have the wrong label")
    (caption,) = re.findall("<figcaption>(.*)</figcaption>", wrong)
    assert caption.startswith("val/ants/wrong.png: ants, looks like bees. The most similar photo: ")
    shown = section(page, "Near-duplicates")  # the pictures have one colour each
    assert len(re.findall("<figure><img.*><img.*>", shown)) == label_check.SHOWN_PAIRS
    assert re.search(r"The first 12 of \d+:", shown)
    assert re.search(r"<figcaption>\S+ and \S+: similarity (1.00|0.9\d)", shown)
    assert "at random" not in shown
    first = report_path.parent.with_suffix(".ckpt")
    train_in_process(tmp_path / "a.ckpt", "-c", first, "--epochs", 1)
    resumed = (tmp_path / "a" / "report.html").read_text()
    assert "<figure>" in section(resumed, "Near-duplicates")


def test_other_photos_are_reported_into_a_folder_of_their_own(report_path, tmp_path):
    write_pictures(tmp_path / "garden", 3, ("bees",))
    state = checkpoint.load(report_path.parent.with_suffix(".ckpt"))
    names, folder = [f"bees/{i}.png" for i in range(3)], tmp_path / "measured"
    others = Photos(tmp_path / "garden", names, state.classes, whole=False)
    model, logits = Classifier(2).eval(), torch.tensor([[0.0, 5], [0, 5], [5, 0]])
    report.write_report(Path("b.ckpt"), state, model, others, logits, folder=folder)
    page = (folder / "report.html").read_text()
    assert f"photos in {tmp_path / 'garden'} are classified correctly" in page
    assert "<tr><th>ants<td>5<td>0<td>0 of 1 (0.0% to 79.3%)<td>–<td>–" in page
    assert "<tr><th>bees<td>5<td>3<td>2 of 2 (34.2% to 100.0%)<td>2 of 3 (20.8% to 93.9%)" in page
    for word in ("Learning curves", "flatters", "validation", "device"):
        assert word not in page.partition("</style>")[2]
    assert json.loads((folder / "metrics.json").read_text())["classes"]["ants"]["recall"] is None


def test_a_report_of_1000_classes_is_small_and_shows_the_worst_confusions(tmp_path):
    page, label = report_of_1000_classes(tmp_path).read_text(), "a class with a rather long name"
    assert len(page) < 2_000_000
    assert f"<tr><th>{label} 7<th>{label} 3<td>1" in page
    assert "The other 1000 are in skipped.txt" in page
