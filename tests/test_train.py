"""train.py: from photos to a checkpoint, and one clear line if that can't be."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import OFFLINE, PROJECT, error_line, python
from trainings import run_training, start_training, stop_at, train_in_process

from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, model


def test_checkpoint_holds_the_run(trained):
    state = checkpoint.load(trained)
    assert state.classes == ["ants", "bees"]
    assert state.epoch == 2
    assert state.architecture == "resnet18"
    assert 0 <= state.best_accuracy <= 1


def test_checkpoint_says_that_it_learnt_from_drawings(trained):
    assert "knows nothing of real photos" in checkpoint.load(trained).notice


def test_summary_names_accuracy_checkpoint_and_next_command(training, trained):
    assert re.search(r"best validation accuracy [01]\.\d+", training.stdout)
    assert f"checkpoint: {trained}" in training.stdout
    assert "Save it into BentoML" not in training.stdout  # there is no terminal
    assert training.stdout.rstrip().endswith(f"Next: python saveToBento.py {trained}")
    assert len(re.findall(r"^epoch +\d/2", training.stdout, re.MULTILINE)) == 2


def test_default_output_is_a_new_file_in_saved_models(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_training("--from-scratch", "--data-dir", pictures, "--epochs", "1")
    assert len(list(tmp_path.glob("saved_models/*.ckpt"))) == 1


def test_training_goes_on_from_a_checkpoint(trained, tmp_path):
    path = tmp_path / "a.ckpt"
    shutil.copy(trained, path)
    run_training("-c", path, "--epochs", "3")
    assert checkpoint.load(path).epoch == 3


def test_finished_training_is_not_repeated(trained):
    before = trained.read_bytes()
    run_training("--checkpoint", trained)
    assert trained.read_bytes() == before


def test_ctrl_c_keeps_the_finished_epochs(pictures, tmp_path):
    path = tmp_path / "a.ckpt"
    arguments = ("--from-scratch", "--epochs", 50, "--data-dir", pictures, "--output", path)
    process = start_training(*arguments)
    said = stop_at(process, "epoch", signal.SIGINT)
    assert process.returncode == 130
    assert f"python train.py -c {path}" in said
    assert checkpoint.load(path).epoch >= 1


def rejection(capsys, *arguments: object) -> str:
    """Return the line that people get for arguments with which nothing can be trained."""
    try:
        run_training("--from-scratch", *map(str, arguments))
    except StackError as error:
        return str(error)
    except SystemExit:
        return capsys.readouterr().err.splitlines()[-1]
    pytest.fail("it was trained")


def test_mistake_is_one_line_without_a_traceback(tmp_path):
    result = python("train.py", "--data-dir", tmp_path / "none")
    assert "sh get_data.sh" in error_line(result)
    assert len(result.stderr.splitlines()) == 1


def test_empty_class_folder_is_one_clear_line(capsys, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "data")
    for path in (folder / "train" / "bees").iterdir():
        path.unlink()
    assert "train/bees has no photos" in rejection(capsys, "--data-dir", folder)


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty folder for torchvision's weights, and no connection to fetch any."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name, proxy in OFFLINE.items():
        monkeypatch.setenv(name, proxy)
    return tmp_path


@pytest.mark.usefixtures("torch_home")
def test_unreachable_weights_are_one_clear_line(pictures):
    with pytest.raises(StackError, match="--from-scratch"):
        run_training("--data-dir", pictures)


def test_damaged_weights_are_one_clear_line(pictures, torch_home):
    folder = torch_home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet18-f37072fd.pth").write_bytes(b"half a file")
    with pytest.raises(StackError, match="are damaged"):
        run_training("--data-dir", pictures)


@pytest.mark.parametrize("device", ["cuda:99", "quantum"])
def test_missing_device_is_one_clear_line(capsys, pictures, device):
    assert "no such device" in rejection(capsys, "--data-dir", pictures, "--device", device)


@pytest.mark.parametrize(
    "argument", ["--epochs=0", "--batch-size=-1", "--lr=nan", "--lr=0", "--seed=x", "--epochs=many"]
)
def test_senseless_number_is_one_clear_line(capsys, argument):
    assert argument.split("=", maxsplit=1)[0] in rejection(capsys, argument)


def test_existing_output_is_never_overwritten(capsys, pictures, trained):
    before = trained.read_bytes()
    line = rejection(capsys, "--data-dir", pictures, "--output", trained)
    assert "choose another --output" in line
    assert trained.read_bytes() == before


def test_arguments_that_shape_a_run_cant_change_when_resuming(capsys, trained):
    assert "--lr" in rejection(capsys, "-c", trained, "--lr", "0.5")


def test_unwritable_output_is_one_clear_line(capsys, pictures):
    arguments = ("--data-dir", pictures, "--epochs", 1, "--output", "/proc/a.ckpt")
    assert "can't write /proc/a.ckpt" in rejection(capsys, *arguments)


@pytest.mark.parametrize("name", ["notes.txt/a.ckpt", "notes.ckpt", "a" * 300 + ".ckpt"])
def test_output_in_the_place_of_something_else_is_rejected_at_once(capsys, tmp_path, name):
    (tmp_path / "notes.txt").write_text("buy honey")
    (tmp_path / "notes").write_text("buy honey")
    line = rejection(capsys, "--data-dir", tmp_path / "none", "--output", tmp_path / name)
    assert "name another place with --output" in line or "move that file" in line


@pytest.mark.parametrize("seed", [1234567890, -(10**30)])
def test_any_whole_number_is_a_seed(pictures, tmp_path, seed):
    arguments = ("--from-scratch", "--epochs", 1, "--data-dir", pictures, f"--seed={seed}")
    assert train_in_process(tmp_path / "a.ckpt", *arguments).epoch == 1


def test_missing_checkpoint_is_one_clear_line(capsys, tmp_path):
    assert "there is no checkpoint" in rejection(capsys, "-c", tmp_path / "a.ckpt")


def test_foreign_checkpoint_is_one_clear_line(capsys, tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "a.ckpt")
    assert "not a checkpoint" in rejection(capsys, "-c", tmp_path / "a.ckpt")


def test_checkpoint_of_the_2020_tutorial_is_rejected(capsys, tmp_path):
    network = model.Classifier(2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    state = {"epoch": 3, "state_dict": network.state_dict(), "optimizer": optimizer}
    torch.save(state, tmp_path / "old.ckpt")
    assert "train again" in rejection(capsys, "-c", tmp_path / "old.ckpt")


@pytest.mark.usefixtures("packing")
def test_save_to_bento_yes_packs_at_the_end(trained):
    result = python("train.py", "-c", trained, "--save-to-bento", "yes")
    assert "is packed already" in result.stdout, result.stderr
    assert "tag: ant_or_bee_classifier:" in result.stdout


@pytest.mark.parametrize(
    ("script", "library"), [("train.py", "libtorch"), ("saveToBento.py", "onnxruntime")]
)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which libraries are loaded")
def test_ctrl_c_while_modules_load_says_that_it_stopped(tmp_path, script, library):
    process = subprocess.Popen(
        [sys.executable, PROJECT / script],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while library not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "\nStopped.\n"
    assert process.returncode == 130
