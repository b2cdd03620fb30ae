"""train.py: from photos to a checkpoint and its report, again and again, on a small network."""

import errno
import fcntl
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from helpers import write_pictures
from trainings import interrupted_in, run_training, same_weights, train_in_process

from simplestack import cli, files
from simplestack.report import label_check
from simplestack.report.report import load_best
from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, dataset, metrics, model
from simplestack.training.distributed import World
from simplestack.training.evaluate import evaluate

CPU, RUN = torch.device("cpu"), Path("a.ckpt")
pytestmark = pytest.mark.usefixtures("small", "run")


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):  # noqa: ARG001
    """A folder with photos/ and a.ckpt, a run of one epoch on them, named as if one were there."""
    folder = tmp_path_factory.mktemp("finished")
    write_pictures(folder / "photos", 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_in_process(RUN, "--data-dir", "photos", "--epochs", 1)
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of that folder, to be in."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


def test_the_first_run_downloads_the_weights(run, monkeypatch):
    published = Path(torch.hub.get_dir(), "checkpoints", model.FILE)
    monkeypatch.setenv("TORCH_HOME", str(run / "empty"))
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda _, path, *__, **___: shutil.copy(published, path)
    )
    assert train_in_process("b.ckpt", "--data-dir", "photos", "--freeze").epoch == 0


def test_a_run_ends_with_accuracy_report_checkpoint_and_next_command(run, capsys):
    run_training("--from-scratch", "--data-dir", "photos", "--epochs", 2)
    (path,) = run.glob("saved_models/*.ckpt")
    name, said = path.relative_to(run), capsys.readouterr().out
    assert re.search(r"^best validation accuracy [01]\.\d{4} \(\d of \d photos", said, re.MULTILINE)
    assert len(re.findall(r"^epoch  \d/2 ", said, re.MULTILINE)) == 2
    assert f"report: {name.with_suffix('')}/report.html\ncheckpoint: {name}\n" in said
    assert "Save it into BentoML" not in said  # without a terminal
    assert said.endswith(f"python saveToBento.py {name}\n")
    assert (path.with_suffix("") / "report.html").exists()


def test_checkpoint_holds_the_run(run):
    state, world = checkpoint.load(RUN), World(CPU)
    assert (state.classes, state.epoch) == (["ants", "bees"], 1)
    best = max(state.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert state.best_row["val_accuracy"] == best["val_accuracy"]
    val = dataset.Photos(run / "photos", state.photos["val"], state.classes, whole=False)
    _, logits = evaluate(load_best(state), val, world)
    loss = pytest.approx(best["val_loss"], rel=1e-2)  # if computed in bfloat16
    assert metrics.loss_and_accuracy(logits, val.labels) == (loss, best["val_accuracy"])


@pytest.mark.parametrize(
    ("recipe", "epochs", "seed"), [("lp-ft", 4, 1234567890), ("tutorial", 3, -(10**30))]
)
def test_an_interrupted_and_resumed_run_ends_as_one_that_never_stopped(run, recipe, epochs, seed):
    arguments = ("--data-dir", "photos", "--epochs", epochs, "--recipe", recipe, f"--seed={seed}")
    straight, path = train_in_process("straight.ckpt", *arguments), "stopped.ckpt"
    with interrupted_in(epochs - 1), pytest.raises(KeyboardInterrupt) as stopped:
        train_in_process(path, *arguments, "--cache", 1)
    said = f"To go on after the last finished epoch:\n  python train.py -c {path}"
    assert str(stopped.value) == f"{said} --device cpu --cache 1.0 --save-to-bento no"
    before = checkpoint.load(run / path)
    assert (before.epoch, before.arguments["seed"]) == (epochs - 2, seed)
    assert not (run / "stopped" / "report.html").exists()
    resumed = train_in_process(path, "-c", path)
    assert not same_weights(resumed.last, before.last)
    assert same_weights(resumed.last, straight.last)
    assert same_weights(resumed.best, straight.best)
    for row in (*resumed.history, *straight.history):
        del row["seconds"]
    assert resumed.history == straight.history


def test_a_finished_run_is_not_repeated_and_can_be_taken_elsewhere_with_its_photos(run):
    before = RUN.read_bytes()
    run_training("--checkpoint", RUN)
    (run / "photos").rename(run / "moved")
    taken = train_in_process("b.ckpt", "-c", RUN, "--data-dir", "moved")
    assert taken.arguments["data_dir"] == "moved"
    assert same_weights(taken.best, checkpoint.load(RUN).best)
    assert RUN.read_bytes() == before
    run_training("-c", RUN, "--data-dir", "moved")  # it is the same one
    assert checkpoint.load(RUN).arguments["data_dir"] == "moved"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--data-dir none", "sh get_data.sh"),
        ("--data-dir photos --device cuda:99", "--device cuda:99: PyTorch finds no such device"),
        ("--data-dir photos --device quantum", "--device quantum: PyTorch finds no such device"),
        ("--data-dir photos --output a.ckpt", "choose another --output"),
        ("--data-dir photos --output /proc/b.ckpt", "'/proc/b.ckpt.lock'"),
        ("--data-dir photos --output a.ckpt/b.ckpt", "'a.ckpt"),
        ("-c a.ckpt --lr 0.5", "--lr is 0.0003 in this run"),
        ("-c none.ckpt", "there is no checkpoint"),
    ],
)
def test_a_mistake_is_one_clear_line_and_changes_nothing(run, capsys, arguments, said):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    with pytest.raises((StackError, OSError, SystemExit)) as error:
        run_training(*arguments.split())
    assert said in f"{error.value}{capsys.readouterr().err}"
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_a_run_reads_no_photo_while_another_one_has_its_output(run, monkeypatch):
    monkeypatch.setattr(dataset, "load_photos", None)
    refused = pytest.raises(StackError, match=r"another train\.py is writing b\.ckpt: ")
    with checkpoint.lock(run / "b.ckpt"), refused:
        train_in_process("b.ckpt", "--data-dir", "photos")
    assert not [*run.glob("b.*")]


@pytest.mark.usefixtures("run")
def test_without_locks_in_the_file_system_a_warning_is_printed(monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert train_in_process("b.ckpt", "--data-dir", "photos", "--freeze").epoch == 0
    said = "warning: can't lock b.ckpt (No locks available): don't train it twice at once\n"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "packed"), [("yes", [["a.ckpt"]]), ("no", []), ("ask", [])])
def test_a_run_is_packed_at_the_end_if_that_is_wanted(monkeypatch, answer, packed):
    calls = []
    monkeypatch.setitem(sys.modules, "saveToBento", SimpleNamespace(main=calls.append))
    run_training("-c", RUN, "--save-to-bento", answer)
    assert calls == packed


@pytest.fixture
def update(run, capsys):  # noqa: ARG001
    """Run the same command again, with --update; return its output, and whether it trained."""

    def update():
        before = RUN.stat().st_mtime_ns
        train_in_process(RUN, "--update", "--data-dir", "photos", "--epochs", 1)
        return capsys.readouterr().out, RUN.stat().st_mtime_ns != before

    return update


def test_changed_photos_are_counted_and_trained_on_once(update, run):
    said, trained = update()
    assert not trained
    assert "nothing to do" in said
    write_pictures(run / "photos", 9)
    finished = RUN.read_bytes()
    (run / "photos" / "bees" / "0.png").unlink()
    write_pictures(run / "photos", 3, ("wasps",))
    (run / "photos" / "ants" / "junk.jpg").write_bytes(b"junk")  # can't be read, is not new again
    said, trained = update()
    assert trained
    assert "has changed: 6 new photos, 1 gone, new class wasps. Training again." in said
    assert update()[1] is False
    assert files.before(RUN).read_bytes() == finished  # the model before
    assert cli.newest(".ckpt", RUN.parent) == RUN


def test_an_unfinished_run_does_not_take_the_place_of_the_model_before(update, run):
    finished = RUN.read_bytes()
    for count in (10, 11):
        write_pictures(run / "photos", count)
        with interrupted_in(1), pytest.raises(KeyboardInterrupt):
            update()
        assert files.before(RUN).read_bytes() == finished
    assert RUN.read_bytes() != finished


def test_a_stopped_update_has_no_old_report_and_before_its_first_epoch_no_way_to_go_on(update, run):
    write_pictures(run / "photos", 9)
    for method, said in (((dataset, "load_photos"), r"^$"), ((label_check, "find"), "^To go on")):
        stop = patch.object(*method, side_effect=KeyboardInterrupt)
        with stop, pytest.raises(KeyboardInterrupt, match=said):
            update()
    assert not (run / "a" / "report.html").exists()
    assert "nothing to do" not in update()[0]
    assert (run / "a" / "report.html").exists()


def evaluated(capsys, *arguments):
    capsys.readouterr()
    run_training("--evaluate", "-c", RUN, "--device", "cpu", *arguments)
    return capsys.readouterr()


def test_evaluate_prints_the_metrics_and_which_photo_is_gone(run, capsys):
    state, names = checkpoint.load(RUN), checkpoint.load(RUN).photos["val"]
    assert state.best_row["val_accuracy"] == 1
    total, (said, _) = len(names), evaluated(capsys)
    assert f"accuracy 1.0000 on {total} validation photos ({total} of {total} photos, 95 %" in said
    rows = re.findall(r"^(\w+)  precision .* recall .* f1-score –", said, re.MULTILINE)
    assert rows == state.classes
    (run / "photos" / names[0]).unlink()
    said, warned = evaluated(capsys)
    assert f"on {total - 1} validation photo" in said
    assert "warning: skipped" in warned
    assert not list((run / "a").glob("evaluated-*"))


def test_another_folder_is_evaluated_without_the_photos_of_the_training(run, capsys):
    shutil.rmtree(run / "photos")
    write_pictures(run / "test", 4, ("bees",))
    (run / "test" / "bees" / "notes.txt").touch()
    assert "accuracy 1.0000 on 4 photos in test" in evaluated(capsys, "--data-dir", "test")[0]
    page = (run / "a" / "evaluated-test" / "report.html").read_text()
    assert "notes.txt: not named like a photo" in page
