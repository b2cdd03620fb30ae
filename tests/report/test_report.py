"""What lies beside a checkpoint: history, metrics, the page, TensorBoard's events."""

import csv
import html
import json
import re
import shlex
import shutil
from collections.abc import Iterator
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
    small_network,
    train_in_process,
)

from simplestack.training import checkpoint, dataset, report, suspects
from simplestack.training.dataset import Photos
from simplestack.training.model import Classifier


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with small_network(tmp_path_factory.mktemp("torch")):
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes, which no test changes."""
    return split_folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def clean(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder beside the checkpoint of a run that gets all right, with TensorBoard's log."""
    path = tmp_path_factory.mktemp("clean") / "a.ckpt"
    train_in_process(path, "--data-dir", photos, "--epochs", 1, "--tensorboard")
    return path.with_suffix("")


@pytest.fixture(scope="module")
def report_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page about a training with a photo that it gets wrong, and files that it skips."""
    return report_with_mistakes(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(report_path: Path) -> str:
    return report_path.read_text()


def test_history_has_a_row_for_every_epoch(clean: Path) -> None:
    with (clean / "history.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == checkpoint.load(clean.with_suffix(".ckpt")).history


def test_metrics_and_arguments_lie_beside_the_page(clean: Path) -> None:
    state = checkpoint.load(clean.with_suffix(".ckpt"))
    measured = json.loads((clean / "metrics.json").read_text())
    assert (measured["photos"], measured["accuracy"]) == (4, state.best_accuracy)
    assert measured["confusion"] == [[2, 0], [0, 2]]
    assert set(measured["classes"]) == {"ants", "bees"}
    assert json.loads((clean / "args.json").read_text()) == state.arguments


def test_the_page_needs_nothing_beside_it(page: str) -> None:
    assert set(re.findall(r'(?:src|href)="(.{10})', page)) == {"data:image"}
    assert "<script" not in page
    assert "url(" not in page


def test_the_page_shows_curves_and_photos(page: str) -> None:
    assert page.count("<svg") == 2
    assert "val/ants/wrong.png: ants, taken for bees" in page


def test_the_page_escapes_names(page: str) -> None:
    assert "<b>" not in page


@odd_names
def test_a_photo_whose_name_is_no_text_is_shown(tmp_path: Path) -> None:
    photos = split_folder(tmp_path / "photos")
    shutil.copy(photos / "train" / "bees" / "0.png", photos / "val" / "ants" / f"{ODD_NAME}.png")
    train_in_process(tmp_path / "a.ckpt", "--data-dir", photos, "--freeze")
    assert r"caf\udce9.png" in (tmp_path / "a" / "report.html").read_text()


def test_tensorboard_reads_what_was_logged(clean: Path) -> None:
    history = checkpoint.load(clean.with_suffix(".ckpt")).history
    events = EventAccumulator(str(clean / "tensorboard")).Reload()
    logged = [(scalar.step, scalar.value) for scalar in events.Scalars("val_loss")]
    assert logged == [(row["epoch"], pytest.approx(row["val_loss"])) for row in history]


def test_a_name_cannot_control_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = split_folder(tmp_path / "photos")
    for split in ("train", "val"):
        (photos / split / "ants").rename(photos / split / "ants\x1b[31m")
    train_in_process(tmp_path / "a.ckpt", "--data-dir", photos, "--freeze")
    trained = capsys.readouterr()
    run_training("-c", tmp_path / "a.ckpt", "--evaluate")
    evaluated = capsys.readouterr()
    page = (tmp_path / "a" / "report.html").read_text()
    for text in (trained.out, evaluated.out, page):
        assert r"ants\x1b[31m" in text
    for text in (trained.out, trained.err, evaluated.out, evaluated.err, page):
        assert "\x1b[31m" not in text


@pytest.mark.parametrize(
    ("classes", "title"),
    [
        (["ants", "bees"], "Ants or bees?"),
        (["cat", "dog", "élan"], "Cat, dog or élan?"),
        ([str(i) for i in range(102)], "102 classes of photos: 0, 1, 2 …"),
    ],
)
def test_the_title_names_the_classes(classes: list[str], title: str) -> None:
    assert report.title(classes) == title


def test_the_page_is_headed_by_its_classes_date_and_checkpoint(page: str) -> None:
    assert "<title>Ants or bees?</title>" in page
    assert re.search(r"<h1>Ants or bees\?</h1>\n<p class=quiet>\d{4}-\d\d-\d\d · a.ckpt</p>", page)


def test_the_page_counts_the_photos_of_each_class_and_split(page: str) -> None:
    assert "<tr><th>ants<td>5<td>3<td>" in page
    assert "<tr><th>bees<td>5<td>2<td>" in page
    assert "<tr><th>all<td>10<td>5<td>" in page


def test_few_photos_are_counted_on_the_page(page: str) -> None:
    assert "<p class=big>4 of 5</p>\n<p>validation photos are classified correctly (95%" in page
    assert "<td>2 of 3 (20.8% to 93.9%)<td>2 of 2 (34.2% to 100.0%)<td>–" in page
    assert "Calibration error" not in page


def test_the_page_says_how_long_on_what_and_with_which_versions(page: str) -> None:
    assert re.search(r"<th>duration of training<td>0:00:\d\d", page)
    assert re.search(r"<th>device<td>\d+ CPU threads", page)
    assert f"<th>torch<td>{torch.__version__}" in page


def test_the_command_on_the_page_repeats_the_run(report_path: Path, tmp_path: Path) -> None:
    command = html.unescape(re.search(r"<pre>(.+)</pre>", report_path.read_text())[1])
    _, script, *arguments = shlex.split(command)
    assert script == "train.py"
    repeated = train_in_process(tmp_path / "a.ckpt", *arguments)
    first = checkpoint.load(report_path.parent.with_suffix(".ckpt"))
    assert same_weights(repeated.last, first.last)


def test_the_linear_probe_is_no_epoch(tmp_path: Path, photos: Path, clean: Path) -> None:
    state = checkpoint.load(clean.with_suffix(".ckpt"))
    state.history[1] |= {"val_accuracy": 0.5}
    val = Photos(photos, state.photos["val"], state.classes, whole=False)
    path = tmp_path / "a.ckpt"
    report.write_report(path, state, Classifier(2).eval(), val, torch.eye(2)[val.labels])
    page = (tmp_path / "a" / "report.html").read_text()
    assert "The weights are those of the linear probe (before epoch 1), chosen as the best" in page


def test_what_was_skipped_is_listed_in_a_file_and_on_the_page(report_path: Path, page: str) -> None:
    lines = (report_path.parent / "skipped.txt").read_text().splitlines()
    assert [Path(line.partition(": ")[0]).name for line in lines] == ["notes.txt", "broken.jpg"]
    assert lines[0].endswith("val/bees/notes.txt: not named like a photo")
    assert "<details><summary>2 files, with their reasons</summary>" in page
    assert [html.unescape(line) for line in re.findall("<li>(.+)", page)] == lines


def test_a_long_list_of_skipped_files_is_named_not_shown_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = split_folder(tmp_path / "photos")
    for i in range(30):
        (photos / "train" / "ants" / f"broken{i}.jpg").write_text("no photo")
    (photos / "val" / "ants" / "two\nlines.txt").write_text("")
    path = tmp_path / "a.ckpt"
    train_in_process(path, "--data-dir", photos, "--freeze")
    printed = capsys.readouterr().err
    assert f"all that is skipped, with the reasons: {tmp_path / 'a' / 'skipped.txt'}" in printed
    assert printed.count("broken") == dataset.EXAMPLES
    lines = (tmp_path / "a" / "skipped.txt").read_text().splitlines()
    assert len(lines) == 31

    run_training("-c", path, "--epochs", 1, "--device", "cpu")  # it doesn't open them again
    assert (tmp_path / "a" / "skipped.txt").read_text().splitlines() == lines


def test_no_list_is_left_if_nothing_is_skipped(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "skipped.txt").write_text("of a run whose checkpoint was deleted")
    train_in_process(tmp_path / "a.ckpt", "--data-dir", photos, "--freeze")
    assert not (tmp_path / "a" / "skipped.txt").exists()
    assert "skipped" not in capsys.readouterr().err
    assert "skipped" not in (tmp_path / "a" / "report.html").read_text()


def test_a_page_without_wrong_photos_says_so(clean: Path) -> None:
    page = (clean / "report.html").read_text()
    assert "<figure>" not in section(page, "The photos it got most wrong or was least sure of")
    assert "with a probability of at least 90%" in page
    assert "There are none." in section(page, "Photos that may have the wrong label")


def section(page: str, heading: str) -> str:
    """Return what stands below a heading."""
    return page.partition(f"<h2>{heading}</h2>")[2].partition("<h2>")[0]


def test_suspicious_photos_are_shown(page: str) -> None:
    wrong = section(page, "Photos that may have the wrong label")
    (caption,) = re.findall("<figcaption>(.*)</figcaption>", wrong)
    assert caption.startswith("val/ants/wrong.png: ants, looks like bees. The most similar photo: ")
    shown = section(page, "Near-duplicates")  # the pictures have one colour each
    assert len(re.findall("<figure><img.*><img.*>", shown)) == suspects.SHOWN_PAIRS
    assert re.search(r"The first 12 of \d+:", shown)
    assert re.search(r"<figcaption>\S+ and \S+: similarity (1.00|0.9\d)", shown)
    assert "at random" not in shown


def test_after_a_resumed_run_suspicious_photos_are_shown_too(
    tmp_path: Path, report_path: Path
) -> None:
    path, first = tmp_path / "a.ckpt", report_path.parent.with_suffix(".ckpt")
    run_training("-c", first, "--output", path, "--epochs", 1, "--device", "cpu")
    page = (tmp_path / "a" / "report.html").read_text()
    assert "<figure>" in section(page, "Near-duplicates")


def test_other_photos_are_reported_into_a_folder_of_their_own(
    report_path: Path, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "garden", 3, ("bees",))
    state = checkpoint.load(report_path.parent.with_suffix(".ckpt"))
    names = [f"bees/{i}.png" for i in range(3)]
    others = Photos(tmp_path / "garden", names, state.classes, whole=False)
    model, logits = Classifier(2).eval(), torch.tensor([[0.0, 5], [0, 5], [5, 0]])
    folder = tmp_path / "measured"
    report.write_report(Path("b.ckpt"), state, model, others, logits, folder=folder)
    page = (folder / "report.html").read_text()
    assert f"photos in {tmp_path / 'garden'} are classified correctly" in page
    assert "<tr><th>ants<td>5<td>0<td>0 of 1 (0.0% to 79.3%)<td>–<td>–" in page
    assert "<tr><th>bees<td>5<td>3<td>2 of 2 (34.2% to 100.0%)<td>2 of 3 (20.8% to 93.9%)" in page
    for word in ("Learning curves", "flatters", "validation", "device"):
        assert word not in page.partition("</style>")[2]
    assert json.loads((folder / "metrics.json").read_text())["classes"]["ants"]["recall"] is None


def test_a_report_of_1000_classes_is_small_and_shows_the_worst_confusions(tmp_path: Path) -> None:
    page = report_of_1000_classes(tmp_path).read_text()
    assert len(page) < 2_000_000
    label = "a class with a rather long name"
    assert f"<tr><th>{label} 7<th>{label} 3<td>1" in page
    assert "The other 1000 are in skipped.txt" in page
