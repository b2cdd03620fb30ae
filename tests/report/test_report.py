"""The files beside a checkpoint: history, metrics and the page."""

import csv
import dataclasses
import html
import json
import re
import shlex
import shutil

import pytest
import torch
from helpers import ODD_NAME, odd_names, split_folder, write_pictures
from trainings import (
    interrupted_in,
    report_1000_classes,
    report_mistakes,
    run_training,
    same_weights,
    train_in_process,
)

from simplestack.report import label_check, report
from simplestack.training import checkpoint, dataset
from simplestack.training.dataset import Photos

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def clean(photos, small, tmp_path_factory):  # noqa: ARG001
    """The folder beside the checkpoint of a run that gets all right."""
    path = tmp_path_factory.mktemp("clean") / "a.ckpt"
    train_in_process(path, "--data-dir", photos, "--epochs", 1)
    return path.with_suffix("")


@pytest.fixture(scope="module")
def report_path(small, tmp_path_factory):  # noqa: ARG001
    return report_mistakes(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def large_report(small, tmp_path_factory):  # noqa: ARG001
    return report_1000_classes(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def page(report_path):
    return report_path.read_text()


def test_history_metrics_and_arguments_lie_beside_the_page(clean):
    state = checkpoint.load(clean.with_suffix(".ckpt"))
    with (clean / "history.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == state.history
    measured = json.loads((clean / "metrics.json").read_text())
    assert (measured["photos"], measured["accuracy"]) == (4, state.best_row["val_accuracy"])
    assert measured["confusion"] == [[2, 0], [0, 2]]
    assert set(measured["classes"]) == {"ants", "bees"}
    assert json.loads((clean / "args.json").read_text()) == state.arguments


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


def test_the_page_tells_of_the_run_and_its_photos_and_needs_no_other_file(page):
    for pattern in (
        "<title>Ants or bees\\?</title>",
        r"<h1>Ants or bees\?</h1>\n<p class=quiet>\d{4}-\d\d-\d\d · a.ckpt</p>",
        "<tr><th>ants<td>5<td>3<td>2 of 2 .34.2% to 100.0%.<td>2 of 3 .20.8% to 93.9%.<td>–",
        "<tr><th>bees<td>5<td>2<td>2 of 3 .20.8% to 93.9%.<td>2 of 2 .34.2% to 100.0%.<td>–",
        "<tr><th>all<td>10<td>5<td>",
        r"<p class=big>4 of 5</p>\n<p>validation photos are classified correctly \(95%",
        "<p>10 training photos are few to recognise .*: the\nservice won't mark any.</p>",
        r"<th>duration of training<td>0:00:\d\d",
        r"<th>device<td>\d+ CPU threads",
        f"<th>torch<td>{re.escape(torch.__version__)}",
        "val/ants/wrong.png: ants, taken for bees",
        "<details><summary>2 files, with their reasons</summary>",
        "<li>.*train/bees/broken.jpg: This is not an image that can be read",
        "<li>.*val/bees/notes.txt: not named like a photo\n",
    ):
        assert re.search(pattern, page), pattern
    assert page.count("<li>") == 2
    assert page.count("<svg") == 2
    assert set(re.findall(r'(?:src|href)="(.{10})', page)) == {"data:image"}  # all is in the page
    for forbidden in (
        "<script",
        "url(",
        "<b>",
        "Calibration error",
        "Confidence",
    ):  # which few photos don't have
        assert forbidden not in page


def test_the_command_on_the_page_repeats_the_run(report_path, page, tmp_path):
    _, script, *arguments = shlex.split(html.unescape(re.search(r"<pre>(.+)</pre>", page)[1]))
    assert script == "train.py"
    repeated = train_in_process(tmp_path / "a.ckpt", *arguments)
    first = checkpoint.load(report_path.parent.with_suffix(".ckpt"))
    assert same_weights(repeated.last, first.last)


def test_the_linear_probe_is_no_epoch(tmp_path, clean):
    state = checkpoint.load(clean.with_suffix(".ckpt"))
    state.history[1]["val_accuracy"] = 0.5
    checkpoint.save(tmp_path / "a.ckpt", state)
    report.write(tmp_path / "a.ckpt")
    page = (tmp_path / "a" / "report.html").read_text()
    assert "The weights are those of the linear probe (before epoch 1), chosen as the best" in page


def test_a_long_list_of_skipped_files_is_on_the_page_also_of_a_resumed_run(tmp_path, capsys):
    photos = split_folder(tmp_path / "photos")
    for i in range(30):
        (photos / "train" / "ants" / f"broken{i}.jpg").write_text("no photo")
    (photos / "val" / "ants" / "two\nlines.txt").write_text("")
    state = train_in_process(tmp_path / "a.ckpt", "--data-dir", photos, "--freeze")
    warned = capsys.readouterr().err
    assert "31 files skipped" in warned
    assert warned.count("broken") == dataset.MAX_SKIPPED_NAMED
    run_training("-c", tmp_path / "a.ckpt", "--epochs", 1, "--device", "cpu")
    resumed = checkpoint.load(tmp_path / "a.ckpt")
    assert resumed.skipped == state.skipped  # it didn't open them again
    assert (tmp_path / "a" / "report.html").read_text().count("<li>") == len(state.skipped) == 31


def section(page, heading):
    return page.partition(f"<h2>{heading}</h2>")[2].partition("<h2>")[0]


def test_a_page_without_wrong_photos_says_so(clean):
    page = (clean / "report.html").read_text()
    assert "<figure>" not in section(page, "The photos it got most wrong or was least sure of")
    assert "with a probability of at least 90%" in page
    assert "There are none." in section(page, "Photos that may have the wrong label")
    assert "skipped" not in page


def test_suspicious_photos_are_shown(page):
    wrong = section(page, "Photos that may have the wrong label")
    (caption,) = re.findall("<figcaption>(.*)</figcaption>", wrong)
    assert caption.startswith("val/ants/wrong.png: ants, looks like bees. The most similar photo: ")
    shown = section(page, "Near-duplicates")  # the pictures have one colour each
    assert len(re.findall("<figure><img.*><img.*>", shown)) == label_check.MAX_PAIRS
    assert re.search(r"The first 12 of \d+:", shown)
    assert re.search(r"<figcaption>\S+ and \S+: similarity (1.00|0.9\d)", shown)
    assert "head, before fine-tuning. Near-duplicates" in shown
    assert "at random" not in shown


@pytest.mark.parametrize("recipe", ["lp-ft", "tutorial"])
def test_a_resumed_run_has_the_report_of_one_that_never_stopped(tmp_path, report_path, recipe):
    arguments = ("--data-dir", tmp_path / "photos", "--epochs", 2, "--recipe", recipe)
    shutil.copytree(report_path.parent.parent / "photos <b>", tmp_path / "photos")
    path = tmp_path / "a.ckpt"

    def told():
        page = (tmp_path / "a" / "report.html").read_text()
        return re.sub(r"\d{4}-\d\d-\d\d ·|\d:\d\d:\d\d", "", page)  # date and duration

    train_in_process(path, *arguments)
    straight = told()
    path.unlink()
    with interrupted_in(2), pytest.raises(KeyboardInterrupt):
        train_in_process(path, *arguments)
    train_in_process(path, "-c", path)
    assert told() == straight
    (tmp_path / "a" / "report.html").unlink()
    report.write(path)
    assert told() == straight


def test_the_page_draws_a_learning_curve_or_says_why_there_is_none(report_path, tmp_path):
    folder, title = report_path.parent.parent / "photos <b>", "Would more photos help?"
    page = report_path.read_text()
    assert "that needs 20 validation photos." in section(page, title)
    state = checkpoint.load(report_path.parent.with_suffix(".ckpt"))
    for change, reason in (
        ({"from_scratch": True}, "this training started\nfrom random weights."),
        ({"recipe": "tutorial"}, "this recipe's network was\ntrained on all of these photos."),
    ):
        arguments = {**state.arguments, "data_dir": str(folder), **change}
        checkpoint.save(tmp_path / "a.ckpt", dataclasses.replace(state, arguments=arguments))
        report.write(tmp_path / "a.ckpt")
        assert reason in section((tmp_path / "a" / "report.html").read_text(), title)
    photos = split_folder(tmp_path / "many", 8, 20)
    train_in_process(tmp_path / "b.ckpt", "--data-dir", photos, "--freeze")
    shown = section((tmp_path / "b" / "report.html").read_text(), title)
    assert shown.count("<svg") == 3  # all, ants and bees
    assert re.search(
        r"<p>The last doubling, from \d+ to \d+ training photos, brought .*; of the", shown
    )


def test_other_photos_are_reported_into_a_folder_of_their_own(report_path, tmp_path):
    write_pictures(tmp_path / "garden", 3, ("bees",))
    state = checkpoint.load(report_path.parent.with_suffix(".ckpt"))
    names, path = [f"bees/{i}.png" for i in range(3)], tmp_path / "measured" / "report.html"
    others = Photos(tmp_path / "garden", names, state.classes, whole=False)
    logits, details = torch.tensor([[0.0, 5], [0, 5], [5, 0]]), {"measured_on": tmp_path / "garden"}
    report.write_page(path, state, others, logits, details)
    page = path.read_text()
    assert f"photos in {tmp_path / 'garden'} are classified correctly" in page
    assert "<tr><th>ants<td>5<td>0<td>0 of 1 (0.0% to 79.3%)<td>–<td>–" in page
    assert "<tr><th>bees<td>5<td>3<td>2 of 2 (34.2% to 100.0%)<td>2 of 3 (20.8% to 93.9%)" in page
    for word in ("Learning curves", "flatters", "validation", "device"):
        assert word not in page.partition("</style>")[2]
    metrics = json.loads(path.with_name("metrics.json").read_text())
    assert metrics["classes"]["ants"]["recall"] is None


def test_the_page_has_a_table_to_choose_a_threshold(large_report):
    shown = section(large_report.read_text(), "Confidence")
    assert "<tr><th>0.99<td>1999 of 2000<td>1999<td>99.8% to 100.0%" in shown
    assert "The epoch was chosen on these same photos, which flatters all these numbers." in shown


def test_a_report_of_1000_classes_is_small_and_shows_the_worst_confusions(large_report):
    page, label = large_report.read_text(), "a class with a rather long name"
    assert len(page) < 2_000_000
    assert f"<tr><th>{label} 7<th>{label} 3<td>1" in page
    assert "<p>And 1000 more.</p>" in page
