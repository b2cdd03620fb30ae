"""Photos are added, removed or moved, and training is run again."""

import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from helpers import PROJECT, run, split_folder, write_pictures
from trainings import run_training, train_in_process

import train
from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, suspects

QUICK = ("--from-scratch", "--epochs", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "photos", 8)
    return tmp_path / "photos"


@pytest.fixture
def update(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run the same command again and again; return what it printed, and whether it trained."""
    path = tmp_path / "a.ckpt"

    def update() -> tuple[str, bool]:
        before = path.stat().st_mtime_ns if path.exists() else 0
        train_in_process(path, "--update", "--data-dir", folder, *QUICK)
        return capsys.readouterr().out, path.stat().st_mtime_ns != before

    return update


def test_nothing_new_is_not_trained_again(update):
    assert update()[1]
    said, trained = update()
    assert not trained
    assert "nothing to do" in said


def test_changed_photos_are_said_and_trained_anew(update, folder):
    update()
    write_pictures(folder, 9)
    (folder / "bees" / "0.png").unlink()
    write_pictures(folder, 3, ("wasps",))
    said, trained = update()
    assert trained
    assert "has changed: 5 new photos, 1 gone, new class wasps. Training anew." in said
    assert update()[1] is False


def test_a_photo_that_cannot_be_read_is_not_new_each_time(update, folder):
    (folder / "ants" / "junk.jpg").write_bytes(b"junk")
    update()
    assert update()[1] is False


def test_an_interrupted_run_is_resumed(update, folder, tmp_path):
    update()
    state = checkpoint.load(tmp_path / "a.ckpt")
    state.arguments["epochs"] = 2
    checkpoint.save(tmp_path / "a.ckpt", state)
    train_in_process(tmp_path / "a.ckpt", "--update", "--data-dir", folder, *QUICK[:2], 2)
    assert len(checkpoint.load(tmp_path / "a.ckpt").history) == len(state.history) + 1


def test_a_run_whose_photos_have_changed_is_not_resumed(folder, tmp_path):
    path = tmp_path / "a.ckpt"
    train_in_process(path, "--data-dir", folder, *QUICK)
    (folder / "ants" / "1.png").rename(folder / "ants" / "x.png")
    with pytest.raises(
        StackError, match=r"1 new photo, 1 gone.*python train\.py --epochs 1 --data-dir"
    ):
        run_training("-c", path)


def test_training_anew_takes_what_was_given_before(folder, tmp_path):
    path = tmp_path / "a.ckpt"
    state = train_in_process(path, "--data-dir", folder, *QUICK, "--seed", 3, "--class-weights")
    write_pictures(folder, 9)
    anew = train_in_process(path, "--update", "--lr", 0.002)
    assert anew.arguments == {**state.arguments, "lr": 0.002}
    assert anew.photos != state.photos


def test_an_old_report_is_not_taken_for_that_of_a_run_that_was_stopped(update, folder, tmp_path):
    update()
    write_pictures(folder, 9)
    stop = patch.object(suspects, "find", side_effect=KeyboardInterrupt)
    with stop, pytest.raises(SystemExit):
        train_in_process(tmp_path / "a.ckpt", "--update", "--data-dir", folder, *QUICK)
    assert not (tmp_path / "a" / "report.html").exists()
    assert "nothing to do" not in update()[0]
    assert (tmp_path / "a" / "report.html").exists()


def test_a_folder_that_has_moved_is_the_same_one(folder, tmp_path):
    path = tmp_path / "a.ckpt"
    train_in_process(path, "--data-dir", folder, *QUICK)
    folder.rename(tmp_path / "elsewhere")
    run_training("-c", path, "--data-dir", tmp_path / "elsewhere", "--save-to-bento", "no")


def test_ctrl_c_before_the_first_new_epoch_names_no_way_to_go_on(update, folder, tmp_path, capsys):
    update()
    write_pictures(folder, 9)
    stop = patch.object(train, "train_one_epoch", side_effect=KeyboardInterrupt)
    with stop, pytest.raises(SystemExit):
        train_in_process(tmp_path / "a.ckpt", "--update", "--data-dir", folder, *QUICK)
    assert capsys.readouterr().err.endswith("\nStopped.\n")


def test_update_needs_an_output(capsys):
    with pytest.raises(SystemExit):
        run_training("--update")
    assert "--update needs --output" in capsys.readouterr().err


def test_a_validation_photo_that_is_gone_is_said_when_evaluating(tmp_path, capsys):
    path, folder = tmp_path / "a.ckpt", split_folder(tmp_path / "data")
    train_in_process(path, "--data-dir", folder, *QUICK)
    (folder / "val" / "bees" / "0.png").unlink()
    capsys.readouterr()
    run_training("--evaluate", "-c", path, "--device", "cpu")
    said = capsys.readouterr()
    assert "on 3 validation photos" in said.out
    assert "warning: skipped" in said.err
    assert not list((tmp_path / "a").glob("evaluated-*"))


def test_another_folder_is_evaluated_without_the_photos_of_the_training(tmp_path, capsys):
    path, folder = tmp_path / "a.ckpt", split_folder(tmp_path / "data")
    train_in_process(path, "--data-dir", folder, *QUICK)
    shutil.rmtree(folder)
    write_pictures(tmp_path / "test", 4, ("bees",))
    (tmp_path / "test" / "bees" / "notes.txt").touch()
    capsys.readouterr()
    run_training("--evaluate", "-c", path, "--data-dir", tmp_path / "test", "--device", "cpu")
    said = capsys.readouterr().out
    state = checkpoint.load(path)
    assert state.classes == ["ants", "bees"]
    assert f"on 4 photos in {tmp_path / 'test'}" in said
    page = (tmp_path / "a" / "evaluated-test" / "report.html").read_text()
    assert "notes.txt: not named like a photo" in page


def test_processes_read_photos_with_any_start_method(tmp_path):
    folder = split_folder(tmp_path / "data", 8, 2)
    script = (
        "import multiprocessing, runpy; multiprocessing.set_start_method('forkserver');"
        " runpy.run_path('train.py', run_name='__main__')"
    )
    arguments = ("--data-dir", folder, "--output", tmp_path / "a.ckpt", "--cache", 0.001)
    command = (sys.executable, "-c", script, *arguments, *QUICK, "--save-to-bento", "no")
    result = run(*command, cwd=PROJECT)
    assert result.returncode == 0, result.stderr
