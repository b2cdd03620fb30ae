"""What lies beside a checkpoint: history, metrics, the page, TensorBoard's events."""

import csv
import html
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import COLOURS, ODD_NAME, odd_names, split_folder, write_pictures
from PIL import Image
from playwright.sync_api import Browser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainings import run_training, same_weights, train_in_process

from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, dataset, report, suspects
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.model import Classifier

LOWEST_CONTRAST = """() => {
  // of each text with what is painted behind it, as WCAG 2 defines it
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const luminance = (layers) => {
    for (const colour of layers) {
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
    }
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) =>
    e ? [...behind(e.parentElement), getComputedStyle(e).backgroundColor] : ["white"];
  const contrast = (e) => {
    const { fill, color } = getComputedStyle(e);
    const [low, high] = [behind(e), [...behind(e), e.closest("svg") ? fill : color]]
      .map(luminance).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const hasText = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return Math.min(...[...document.querySelectorAll("main *")].filter(hasText).map(contrast));
}"""


@pytest.fixture(scope="module")
def report_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page about a training with a photo that it gets wrong, and files that it skips."""
    folder = tmp_path_factory.mktemp("report")
    photos = split_folder(folder / "photos <b>")
    Image.new("RGB", (300, 300), COLOURS["bees"]).save(photos / "val" / "ants" / "wrong.png")
    (photos / "train" / "bees" / "broken.jpg").write_text("no photo")
    (photos / "val" / "bees" / "notes.txt").write_text("buy honey")
    train_in_process(folder / "a.ckpt", "--data-dir", photos, "--epochs", 1, "--seed", 3)
    return folder / "a" / "report.html"


@pytest.fixture(scope="module")
def page(report_path: Path) -> str:
    return report_path.read_text()


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
    assert "val/ants/wrong.png: ants, taken for bees" in page


def test_the_page_escapes_names(page: str) -> None:
    assert "<b>" not in page


@odd_names
def test_a_photo_whose_name_is_no_text_is_shown(tmp_path: Path) -> None:
    photos = split_folder(tmp_path / "photos")
    shutil.copy(photos / "train" / "bees" / "0.png", photos / "val" / "ants" / f"{ODD_NAME}.png")
    train_in_process(tmp_path / "a.ckpt", "--data-dir", photos, "--freeze")
    assert r"caf\udce9.png" in (tmp_path / "a" / "report.html").read_text()


def test_evaluate_prints_the_metrics(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_training("--evaluate", "-c", tuned, "--device", "cpu")
    printed = capsys.readouterr().out
    assert (
        "accuracy 1.0000 on 4 validation photos"
        " (4 of 4 photos, 95 % confidence interval 0.510 to 1.000)" in printed
    )
    two = "2 of 2 (0.342 to 1.000)"
    assert f"ants  precision {two}  recall {two}  f1-score –  (2 photos)" in printed


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


def test_the_linear_probe_is_no_epoch(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "a.ckpt"
    state = train_in_process(path, "--data-dir", photos, "--freeze")
    state.history.append({**state.history[0], "epoch": 1, "val_accuracy": 0.5})
    val = Photos(photos, state.photos["val"], state.classes, whole=False)
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


def test_a_page_without_wrong_photos_says_so(tuned: Path) -> None:
    page = (tuned.parent / "a" / "report.html").read_text()
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


@pytest.fixture(scope="module")
def page_of_1000_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page about a model of 1,000 classes with long names, two photos of each, all skipped."""
    folder = tmp_path_factory.mktemp("many")
    classes = [f"a class with a rather long name {i}" for i in range(1000)]
    names = [f"val/{name}/{i}.png" for name in classes for i in range(2)]
    arguments = {"recipe": "lp-ft", "from_scratch": False, "data_dir": str(folder)}
    row = {"epoch": 1, "loss": 1.0, "accuracy": 1.0, "val_loss": 1.0, "val_accuracy": 1.0}
    history = [{**row, "seconds": 9.0}, {**row, "epoch": 2, "val_loss": 2.0, "seconds": 9.0}]
    recorded = {"train": [name.replace("val", "train") for name in names], "val": names}
    state = Checkpoint(classes, recorded, arguments, "", {}, history=history)
    val = Photos(folder, names, classes, whole=False)
    logits = 99 * torch.eye(1000)[val.labels]
    logits[14] = 0.0
    logits[14, 3] = 1.0
    write_pictures(folder / "val", 1, (classes[7],))
    report.write_skipped(folder / "a", [f"{name}: damaged" for name in names])
    report.write_report(folder / "a.ckpt", state, Classifier(1000).eval(), val, logits)
    return folder / "a" / "report.html"


def test_a_report_of_1000_classes_is_small_and_shows_the_worst_confusions(
    page_of_1000_classes: Path,
) -> None:
    page = page_of_1000_classes.read_text()
    assert len(page) < 2_000_000
    label = "a class with a rather long name"
    assert f"<tr><th>{label} 7<th>{label} 3<td>1" in page
    assert "The other 1000 are in skipped.txt" in page


@pytest.mark.parametrize(
    ("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 24, 29)")]
)
@pytest.mark.parametrize("fixture", ["report_path", "page_of_1000_classes"])
def test_the_page_fits_a_phone_and_its_text_stands_out(
    browser: Browser, request: pytest.FixtureRequest, fixture: str, scheme: str, ground: str
) -> None:
    with browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme=scheme
    ) as context:
        page = context.new_page()
        page.goto(request.getfixturevalue(fixture).as_uri())
        page.locator("summary").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
        assert page.evaluate(LOWEST_CONTRAST) >= 4.5
