"""Interrupted runs: what is left, and that they go on as if nothing had happened."""

import signal
from pathlib import Path

import pytest
from helpers import split_folder
from trainings import same_weights, start_training, stop_at, train_in_process

from simplestack.serving.errors import StackError
from simplestack.training import checkpoint
from simplestack.training.options import merge, parse_arguments


@pytest.mark.parametrize(("recipe", "epochs", "killed"), [("lp-ft", 6, 3), ("tutorial", 3, 1)])
def test_a_killed_and_resumed_run_ends_as_one_that_never_stopped(
    tmp_path: Path, photos: Path, recipe: str, epochs: int, killed: int
) -> None:
    arguments = ("--data-dir", photos, "--epochs", epochs, "--recipe", recipe)
    straight = train_in_process(tmp_path / "straight.ckpt", *arguments)
    path = tmp_path / "killed.ckpt"
    stop_at(
        start_training(*arguments, "--output", path), f"epoch {killed:2}/{epochs}", signal.SIGKILL
    )
    assert checkpoint.load(path).epoch < epochs
    resumed = train_in_process(path, "-c", path)
    assert same_weights(resumed.last, straight.last)
    assert same_weights(resumed.best, straight.best)


def test_sigterm_leaves_the_finished_epochs_and_says_how_to_go_on(
    tmp_path: Path, photos: Path
) -> None:
    path = tmp_path / "a.ckpt"
    process = start_training("--data-dir", photos, "--epochs", 50, "--output", path)
    said = stop_at(process, "epoch  1/50", signal.SIGTERM)
    assert checkpoint.load(path).epoch >= 1
    assert f"python train.py -c {path}" in said
    assert process.returncode == 130


def test_the_command_to_go_on_has_what_is_not_recorded() -> None:
    given = parse_arguments(["--cache", "0.5", "--device", "cpu", "--epochs", "3"])
    command = merge(given, {}).resume_command()
    assert command.endswith(".ckpt --device cpu --cache 0.5")


def test_a_loss_that_is_not_finite_stops_and_leaves_the_epoch_before(
    tmp_path: Path, photos: Path
) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(StackError, match=r"epoch 1 isn't finite: the learning rate 1e\+30"):
        train_in_process(path, "--data-dir", photos, "--epochs", 2, "--lr", 1e30)
    assert checkpoint.load(path).epoch == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_reads_in_processes_stops_as_it_begins_to(
    tmp_path: Path, photos: Path, number: int
) -> None:
    path = tmp_path / "a.ckpt"
    process = start_training("--data-dir", photos, "--epochs", 50, "--cache", 0, "--output", path)
    said = stop_at(process, "linear probe", number, group=True)
    assert process.returncode == 130
    assert said.split("\n\n")[-1].startswith(("Stopped. To go on", "\nStopped. To go on"))
    assert "Traceback" not in said
    assert "ignored" not in said


def test_a_finished_run_can_be_taken_elsewhere_with_its_photos(tmp_path: Path) -> None:
    photos, path = split_folder(tmp_path / "photos"), tmp_path / "a.ckpt"
    train_in_process(path, "--data-dir", photos, "--freeze")
    moved = photos.rename(tmp_path / "moved")
    before = path.read_bytes()
    taken = train_in_process(tmp_path / "b.ckpt", "-c", path, "--data-dir", moved)
    assert taken.arguments["data_dir"] == str(moved)
    assert same_weights(taken.best, checkpoint.load(path).best)
    assert path.read_bytes() == before


def test_what_decides_the_result_cannot_be_changed_when_resuming(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.ckpt"
    train_in_process(path, "--data-dir", photos, "--freeze")
    with pytest.raises(SystemExit):
        train_in_process(path, "-c", path, "--seed", 1)
    assert "--seed is 0 in this run" in capsys.readouterr().err
