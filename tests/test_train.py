"""train.py: from photos to a checkpoint, and one clear line where that can't be."""

import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from helpers import OFFLINE, PROJECT, error_line, python

import train as train_py
from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, model


def train(*arguments: object, **environment: str):
    return python("train.py", "--from-scratch", *arguments, **environment)


def test_checkpoint_holds_the_run(trained):
    state = checkpoint.load(trained)
    assert state.classes == ["ants", "bees"]
    assert state.epoch == 1
    assert state.architecture == "resnet18"
    assert 0 <= state.best_accuracy <= 1


def test_checkpoint_says_that_it_learnt_from_drawings(trained):
    assert "knows nothing of real photos" in checkpoint.load(trained).notice


def test_summary_names_accuracy_checkpoint_and_next_command(pictures, tmp_path):
    path = tmp_path / "a.ckpt"
    result = train("--data-dir", pictures, "--epochs", 2, "--output", path)
    assert re.search(r"best validation accuracy [01]\.\d+", result.stdout)
    assert f"checkpoint: {path}" in result.stdout
    assert "Save it into BentoML" not in result.stdout  # there is no terminal
    assert result.stdout.rstrip().endswith(f"Next: python saveToBento.py {path}")
    assert len(re.findall(r"^epoch +\d/2", result.stdout, re.MULTILINE)) == 2


def test_default_output_is_a_new_file_in_saved_models(pictures, tmp_path):
    result = train("--data-dir", pictures, "--epochs", 1, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("saved_models/*.ckpt"))) == 1


def test_training_goes_on_from_a_checkpoint(trained, tmp_path):
    path = tmp_path / "a.ckpt"
    shutil.copy(trained, path)
    result = python("train.py", "-c", path, "--epochs", 2)
    assert result.returncode == 0, result.stderr
    assert checkpoint.load(path).epoch == 2


def test_finished_training_is_not_repeated(trained):
    before = trained.read_bytes()
    result = python("train.py", "--checkpoint", trained)
    assert result.returncode == 0, result.stderr
    assert trained.read_bytes() == before


def test_ctrl_c_keeps_the_finished_epochs(pictures, tmp_path):
    path = tmp_path / "a.ckpt"
    command = f"train.py --from-scratch --epochs 50 --data-dir {pictures} --output {path}"
    process = subprocess.Popen(
        [sys.executable, *command.split()],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    while not process.stdout.readline().startswith("epoch"):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"python train.py -c {path}" in errors
    assert checkpoint.load(path).epoch >= 1


def refuse(capsys, *arguments: object) -> str:
    """Start a training that can't be, in this process; return the line that people get."""
    try:
        train_py.main(["--from-scratch", *map(str, arguments)])
    except StackError as error:
        return str(error)
    except SystemExit:
        return capsys.readouterr().err.splitlines()[-1]
    pytest.fail("it was trained")


def test_mistake_is_one_line_without_a_traceback(tmp_path):
    result = train("--data-dir", tmp_path / "none")
    assert "sh get_data.sh" in error_line(result)
    assert len(result.stderr.splitlines()) == 1


def test_empty_class_folder_is_one_clear_line(capsys, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "data")
    for path in (folder / "train" / "bees").iterdir():
        path.unlink()
    assert "train/bees has no photos" in refuse(capsys, "--data-dir", folder)


def test_unreachable_weights_are_one_clear_line(pictures, tmp_path):
    result = python("train.py", "--data-dir", pictures, TORCH_HOME=str(tmp_path), **OFFLINE)
    assert "--from-scratch" in error_line(result)


def test_damaged_weights_are_one_clear_line(pictures, tmp_path):
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet18-f37072fd.pth").write_bytes(b"half a file")
    result = python("train.py", "--data-dir", pictures, TORCH_HOME=str(tmp_path), **OFFLINE)
    assert "are damaged" in error_line(result)


@pytest.mark.parametrize("device", ["cuda:99", "quantum"])
def test_missing_device_is_one_clear_line(capsys, pictures, device):
    assert "no such device" in refuse(capsys, "--data-dir", pictures, "--device", device)


@pytest.mark.parametrize(
    "argument", ["--epochs=0", "--batch-size=-1", "--lr=nan", "--lr=0", "--seed=x", "--epochs=many"]
)
def test_senseless_number_is_one_clear_line(capsys, argument):
    assert argument.split("=", maxsplit=1)[0] in refuse(capsys, argument)


def test_existing_output_is_never_overwritten(capsys, pictures, trained):
    before = trained.read_bytes()
    line = refuse(capsys, "--data-dir", pictures, "--output", trained)
    assert "choose another --output" in line
    assert trained.read_bytes() == before


def test_arguments_that_shape_a_run_cant_change_on_the_way(capsys, trained):
    assert "--lr" in refuse(capsys, "-c", trained, "--lr", "0.5")


def test_unwritable_output_is_one_clear_line(capsys, pictures):
    arguments = ("--data-dir", pictures, "--epochs", 1, "--output", "/proc/a.ckpt")
    assert "can't write /proc/a.ckpt" in refuse(capsys, *arguments)


@pytest.mark.parametrize("name", ["notes.txt/a.ckpt", "notes.ckpt", "a" * 300 + ".ckpt"])
def test_output_in_the_place_of_something_else_is_refused_at_once(capsys, tmp_path, name):
    (tmp_path / "notes.txt").write_text("buy honey")
    (tmp_path / "notes").write_text("buy honey")
    line = refuse(capsys, "--data-dir", tmp_path / "none", "--output", tmp_path / name)
    assert "name another place with --output" in line or "move that file" in line


def test_any_whole_number_is_a_seed(pictures, tmp_path):
    arguments = ["--from-scratch", "--epochs", 1, "--data-dir", pictures, "--device", "cpu"]
    for seed in (1234567890, -(10**30)):
        path = tmp_path / f"{seed}.ckpt"
        train_py.main([*map(str, arguments), f"--seed={seed}", "--output", str(path)])
        assert checkpoint.load(path).epoch == 1


def test_missing_checkpoint_is_one_clear_line(capsys, tmp_path):
    assert "there is no checkpoint" in refuse(capsys, "-c", tmp_path / "a.ckpt")


def test_foreign_checkpoint_is_one_clear_line(capsys, tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "a.ckpt")
    assert "not a checkpoint" in refuse(capsys, "-c", tmp_path / "a.ckpt")


def test_checkpoint_of_the_2020_tutorial_is_refused(capsys, tmp_path):
    network = model.Classifier(2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    state = {"epoch": 3, "state_dict": network.state_dict(), "optimizer": optimizer}
    torch.save(state, tmp_path / "old.ckpt")
    assert "train again" in refuse(capsys, "-c", tmp_path / "old.ckpt")


def test_save_to_bento_yes_packs_at_the_end(pictures, tmp_path):
    path = tmp_path / "a.ckpt"
    flags = ("--epochs", 1, "--output", path, "--save-to-bento", "yes")
    result = train("--data-dir", pictures, *flags)
    assert "tag: ant_or_bee_classifier:" in result.stdout, result.stderr
