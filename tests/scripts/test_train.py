"""train.py: from photos to a checkpoint and its report, again and again, on a small network.

How it is started and stopped is in system.
"""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from helpers import write_pictures
from trainings import interrupted_in, run_training, same_weights, small_network, train_in_process

from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, dataset, metrics, suspects
from simplestack.training.distributed import World
from simplestack.training.evaluate import load_best, predict
from simplestack.training.recipes import RECIPES

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with small_network(tmp_path_factory.mktemp("torch")):
        yield


@pytest.fixture(scope="module")
def finished(small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    """A folder with photos/ and a.ckpt, a run of one epoch on them, named as if one were there."""
    folder = tmp_path_factory.mktemp("finished")
    write_pictures(folder / "photos", 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_in_process(Path("a.ckpt"), "--data-dir", "photos", "--epochs", 1)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(finished: Path, folder: Path) -> Path:
    """A copy of that folder, to be in."""
    return shutil.copytree(finished, folder, dirs_exist_ok=True)


def test_a_run_ends_with_accuracy_report_checkpoint_and_next_command(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training("--from-scratch", "--data-dir", "photos", "--epochs", 2)
    (path,) = run.glob("saved_models/*.ckpt")
    name = path.relative_to(run)
    said = capsys.readouterr().out
    assert re.search(r"^best validation accuracy [01]\.\d{4} \(\d of \d photos", said, re.MULTILINE)
    assert len(re.findall(r"^epoch  \d/2 ", said, re.MULTILINE)) == 2
    assert f"report: {name.with_suffix('')}/report.html\ncheckpoint: {name}\n" in said
    assert "Save it into BentoML" not in said  # there is no terminal
    assert said.endswith(f"python saveToBento.py {name}\n")
    assert (path.with_suffix("") / "report.html").exists()


def test_checkpoint_holds_the_run(run: Path) -> None:
    state = checkpoint.load(Path("a.ckpt"))
    assert (state.classes, state.epoch, state.architecture) == (["ants", "bees"], 1, "resnet18")
    best = max(state.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert state.best_accuracy == best["val_accuracy"]
    val = dataset.Photos(run / "photos", state.photos["val"], state.classes, whole=False)
    world = World(CPU)
    _, logits = predict(load_best(state, world), val, world, RECIPES["lp-ft"])
    assert metrics.loss_and_accuracy(logits, val.labels) == (
        pytest.approx(best["val_loss"], rel=1e-2),  # if computed in bfloat16
        best["val_accuracy"],
    )


@pytest.mark.usefixtures("run")
def test_each_epoch_changes_the_weights() -> None:
    first = checkpoint.load(Path("a.ckpt")).last
    then = train_in_process(Path("a.ckpt"), "-c", "a.ckpt", "--epochs", 2, "--device", "cpu")
    assert then.epoch == 2
    assert not torch.equal(
        first["resnet.layer4.0.conv1.weight"], then.last["resnet.layer4.0.conv1.weight"]
    )


@pytest.mark.parametrize(("recipe", "epochs"), [("lp-ft", 4), ("tutorial", 3)])
def test_an_interrupted_and_resumed_run_ends_as_one_that_never_stopped(
    run: Path, recipe: str, epochs: int
) -> None:
    arguments = ("--data-dir", "photos", "--epochs", epochs, "--recipe", recipe)
    straight = train_in_process(run / "straight.ckpt", *arguments)
    path = run / "stopped.ckpt"
    with interrupted_in(epochs - 1), pytest.raises(SystemExit):
        train_in_process(path, *arguments)
    assert checkpoint.load(path).epoch == epochs - 2
    resumed = train_in_process(path, "-c", path)
    assert same_weights(resumed.last, straight.last)
    assert same_weights(resumed.best, straight.best)
    assert [{**row, "seconds": 0} for row in resumed.history] == [
        {**row, "seconds": 0} for row in straight.history
    ]


def test_ctrl_c_says_how_to_go_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--data-dir", "photos", "--epochs", 9, "--cache", 1)
    with interrupted_in(1), pytest.raises(SystemExit) as stopped:
        train_in_process(Path("b.ckpt"), *arguments)
    assert stopped.value.code == 130
    said = "Stopped. To go on after the last finished epoch:\n  python train.py -c b.ckpt"
    assert capsys.readouterr().err.endswith(f"{said} --device cpu --cache 1.0 --save-to-bento no\n")
    assert not (run / "b" / "report.html").exists()


def test_finished_training_is_not_repeated(run: Path) -> None:
    before = (run / "a.ckpt").read_bytes()
    run_training("--checkpoint", "a.ckpt")
    assert (run / "a.ckpt").read_bytes() == before


def test_a_finished_run_can_be_taken_elsewhere_with_its_photos(run: Path) -> None:
    (run / "photos").rename(run / "moved")
    before = (run / "a.ckpt").read_bytes()
    taken = train_in_process(Path("b.ckpt"), "-c", "a.ckpt", "--data-dir", "moved")
    assert taken.arguments["data_dir"] == "moved"
    assert same_weights(taken.best, checkpoint.load(Path("a.ckpt")).best)
    assert (run / "a.ckpt").read_bytes() == before
    run_training("-c", "a.ckpt", "--data-dir", "moved")  # it is the same one
    assert checkpoint.load(Path("a.ckpt")).arguments["data_dir"] == "moved"


def test_a_loss_that_is_not_finite_stops_and_leaves_the_epoch_before(run: Path) -> None:
    path = run / "b.ckpt"
    with pytest.raises(StackError, match=r"epoch 1 isn't finite: the learning rate 1e\+30"):
        train_in_process(path, "--data-dir", "photos", "--epochs", 2, "--lr", 1e30)
    assert checkpoint.load(path).epoch == 0


@pytest.mark.parametrize("seed", [1234567890, -(10**30)])
def test_any_whole_number_is_a_seed(run: Path, seed: int) -> None:
    arguments = ("--data-dir", "photos", "--freeze", f"--seed={seed}")
    assert train_in_process(run / "b.ckpt", *arguments).arguments["seed"] == seed


def rejection(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the line that people get for arguments with which nothing can be trained."""
    try:
        run_training(*arguments)
    except StackError as error:
        return str(error)
    except SystemExit:
        return capsys.readouterr().err.splitlines()[-1]
    pytest.fail("it was trained")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--data-dir none", "sh get_data.sh"),
        ("--data-dir empty", "empty/bees has no photos"),
        ("--data-dir photos --device cuda:99", "no such device"),
        ("--data-dir photos --output a.ckpt", "choose another --output"),
        ("--data-dir none --output /proc/b.ckpt", "can't write /proc/b.ckpt"),
        ("--data-dir none --output notes.ckpt", "move that file"),
        ("--data-dir photos --lr=-1", "--lr must be more than 0"),
        ("-c a.ckpt --lr 0.5", "--lr is 0.0003 in this run"),
        ("-c none.ckpt", "there is no checkpoint"),
        ("-c foreign.ckpt", "not a checkpoint"),
        ("--update", "--update needs --output"),
    ],
)
def test_what_cannot_be_trained_is_one_clear_line_and_changes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: str, said: str
) -> None:
    write_pictures(run / "empty", 2, ("ants",))
    (run / "empty" / "bees").mkdir()
    (run / "notes").write_text("buy honey")
    torch.save({"weights": torch.zeros(3)}, run / "foreign.ckpt")
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    assert said in rejection(capsys, *arguments.split())
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_tensorboard_that_is_not_installed_is_one_clear_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(StackError, match="pip install tensorboard"):
        run_training("--tensorboard", "--output", "a.ckpt")
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(("answer", "packed"), [("yes", [["a.ckpt"]]), ("no", []), ("ask", [])])
def test_a_run_is_packed_at_the_end_if_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch, answer: str, packed: list[list[str]]
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setitem(sys.modules, "saveToBento", SimpleNamespace(main=calls.append))
    run_training("-c", "a.ckpt", "--save-to-bento", answer)
    assert calls == packed


# --update: photos are added or removed, and the same command is run again


Update = Callable[[], tuple[str, bool]]


@pytest.fixture
def update(run: Path, capsys: pytest.CaptureFixture[str]) -> Update:
    """Run the same command again; return what it printed, and whether it trained."""

    def update() -> tuple[str, bool]:
        before = (run / "a.ckpt").stat().st_mtime_ns
        train_in_process(Path("a.ckpt"), "--update", "--data-dir", "photos", "--epochs", 1)
        return capsys.readouterr().out, (run / "a.ckpt").stat().st_mtime_ns != before

    return update


def test_nothing_new_is_not_trained_again(update: Update) -> None:
    said, trained = update()
    assert not trained
    assert "nothing to do" in said


def test_changed_photos_are_said_and_trained_anew_once(update: Update, run: Path) -> None:
    write_pictures(run / "photos", 9)
    (run / "photos" / "bees" / "0.png").unlink()
    write_pictures(run / "photos", 3, ("wasps",))
    (run / "photos" / "ants" / "junk.jpg").write_bytes(b"junk")  # can't be read, is not new again
    said, trained = update()
    assert trained
    assert "has changed: 6 new photos, 1 gone, new class wasps. Training anew." in said
    assert update()[1] is False


@pytest.mark.usefixtures("run")
def test_an_update_goes_on_with_an_interrupted_run() -> None:
    train_in_process(Path("a.ckpt"), "--update", "--data-dir", "photos", "--epochs", 2)
    assert [row["epoch"] for row in checkpoint.load(Path("a.ckpt")).history] == [0, 1, 2]


def test_training_anew_takes_what_was_given_before(run: Path) -> None:
    given = ("--data-dir", "photos", "--freeze", "--seed", 3, "--class-weights")
    state = train_in_process(run / "b.ckpt", *given)
    write_pictures(run / "photos", 9)
    anew = train_in_process(run / "b.ckpt", "--update", "--lr", 0.002)
    assert anew.arguments == {**state.arguments, "lr": 0.002}
    assert anew.photos != state.photos


def test_an_old_report_is_not_taken_for_that_of_a_run_that_was_stopped(
    update: Update, run: Path
) -> None:
    write_pictures(run / "photos", 9)
    with patch.object(suspects, "find", side_effect=KeyboardInterrupt), pytest.raises(SystemExit):
        update()
    assert not (run / "a" / "report.html").exists()
    assert "nothing to do" not in update()[0]
    assert (run / "a" / "report.html").exists()


def test_ctrl_c_before_the_first_new_epoch_names_no_way_to_go_on(
    update: Update, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(run / "photos", 9)
    stop = patch.object(dataset, "open_photos", side_effect=KeyboardInterrupt)
    with stop, pytest.raises(SystemExit):
        update()
    assert capsys.readouterr().err.endswith("\nStopped.\n")


# --evaluate


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """Return what is printed when a.ckpt is evaluated."""
    capsys.readouterr()
    run_training("--evaluate", "-c", "a.ckpt", "--device", "cpu", *arguments)
    return capsys.readouterr()


@pytest.mark.usefixtures("run")
def test_evaluate_prints_the_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    state = checkpoint.load(Path("a.ckpt"))
    assert state.best_accuracy == 1
    counts = [sum(c in name for name in state.photos["val"]) for c in state.classes]
    said, _ = evaluated(capsys)
    total = sum(counts)
    assert f"accuracy 1.0000 on {total} validation photos ({total} of {total} photos, 95 %" in said
    for name, count in zip(state.classes, counts, strict=True):
        share = rf"{count} of {count} \(0\.\d+ to 1\.000\)"
        assert re.search(
            rf"{name}  precision {share}  recall {share}  f1-score –  \({count} photos?\)", said
        )


def test_a_validation_photo_that_is_gone_is_said_when_evaluating(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = checkpoint.load(run / "a.ckpt").photos["val"]
    (run / "photos" / names[0]).unlink()
    said, warned = evaluated(capsys)
    assert f"on {len(names) - 1} validation photo" in said
    assert "warning: skipped" in warned
    assert not list((run / "a").glob("evaluated-*"))


def test_another_folder_is_evaluated_without_the_photos_of_the_training(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "photos")
    write_pictures(run / "test", 4, ("bees",))
    (run / "test" / "bees" / "notes.txt").touch()
    said, _ = evaluated(capsys, "--data-dir", "test")
    assert "accuracy 1.0000 on 4 photos in test" in said
    page = (run / "a" / "evaluated-test" / "report.html").read_text()
    assert "notes.txt: not named like a photo" in page
