"""train.py as people start it: exit codes, signals and processes."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import PROJECT, split_folder
from trainings import same_weights, start_training, stop_at, train_in_process, write_weights

from simplestack.packing import local_server
from simplestack.report.report import load_best
from simplestack.training import checkpoint, dataset, metrics, model


@pytest.fixture(scope="module", autouse=True)
def torch_home(tmp_path_factory):
    """Random weights, where torchvision looks for ImageNet's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(write_weights(tmp_path_factory.mktemp("torch"))))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def photos(tmp_path):
    return split_folder(tmp_path / "photos")


@pytest.mark.parametrize(
    ("script", "library"), [("train.py", "libtorch"), ("saveToBento.py", "onnxruntime")]
)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which libraries are loaded")
def test_ctrl_c_while_modules_load_says_that_it_stopped(tmp_path, script, library):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = [sys.executable, PROJECT / script]
    process = subprocess.Popen(command, cwd=tmp_path, text=True, **pipes)
    while library not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "\nStopped.\n"
    assert process.returncode == -signal.SIGINT


# Without a cache, processes begin to read: they get the signal, too.
@pytest.mark.parametrize(
    ("cache", "line", "epoch"), [(1, "epoch  1/50", 1), (0, "linear probe", 0)]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_keep_the_finished_epochs_and_say_how_to_go_on(
    photos, number, cache, line, epoch
):
    path = photos.parent / "a.ckpt"
    arguments = ("--data-dir", photos, "--epochs", 50, "--output", path, "--cache", cache)
    said = stop_at(process := start_training(*arguments), line, number, group=not cache)
    assert process.returncode == -signal.SIGINT
    assert checkpoint.load(path).epoch >= epoch
    last = said.split("\n\n")[-1].lstrip("\n")
    assert last.startswith("Stopped. To go on")
    assert f"python train.py -c {path}" in last
    assert not re.search("Traceback|ignored", said)


def test_a_killed_and_resumed_run_ends_as_one_that_never_stopped(tmp_path, photos):
    arguments, path = ("--data-dir", photos, "--epochs", 4), tmp_path / "killed.ckpt"
    process = start_training(*arguments, "--output", path)
    stop_at(process, "epoch  1/4", signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert 1 <= checkpoint.load(path).epoch < 4
    said = (process := start_training("-c", path)).communicate()[0]
    assert process.returncode == 0, said
    assert said.endswith(f"\nNext: python saveToBento.py {path}\n")
    straight, resumed = train_in_process(tmp_path / "b.ckpt", *arguments), checkpoint.load(path)
    assert same_weights(resumed.last, straight.last)
    assert same_weights(resumed.best, straight.best)


def test_a_checkpoint_is_written_by_one_training_at_a_time_and_a_killed_one_is_not_in_the_way(
    tmp_path, photos
):
    path = tmp_path / "a.ckpt"
    first = start_training("--data-dir", photos, "--epochs", 50, "--output", path)
    assert any(line.startswith("epoch  1/50") for line in first.stdout)
    with start_training("-c", path) as second:
        said = second.stdout.read()
    assert (second.returncode, said.count("\n")) == (1, 1)
    assert said.startswith(f"error: another train.py is writing {path}: ")
    with first:
        first.kill()
    stop_at(third := start_training("-c", path), "epoch", signal.SIGINT)
    assert third.returncode == -signal.SIGINT
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a.ckpt", "photos"]


def test_a_photo_that_vanishes_ends_the_training_with_one_line(tmp_path, photos):
    run = ("--data-dir", photos, "--epochs", 50, "--cache", 0)
    with start_training(*run, "--output", tmp_path / "a.ckpt") as process:
        assert any(line.startswith("epoch") for line in process.stdout)
        (photos / "train" / "bees" / "3.png").unlink()
        said = process.stdout.read()
    assert process.returncode == 1
    (error,) = [line for line in said.splitlines() if "error: " in line]
    assert "bees/3.png: " in error
    assert "Traceback" not in said


MEET = ("--nnodes=2", "--master_addr=127.0.0.1", f"--master_port={local_server.free_port()}")
TWO_PROCESSES = [("--standalone", "--nproc_per_node=2")]
TWO_MACHINES = [(*MEET, "--node_rank=0"), (*MEET, "--node_rank=1")]


def train_together(launches, output, *arguments):
    """Train by torchrun, with these options on each machine; return output and checkpoint."""
    programs = [("-m", "torch.distributed.run", *launch, "train.py") for launch in launches]
    machines = [start_training(*arguments, "--output", output, program=p) for p in programs]
    said = [machine.communicate()[0] for machine in machines]
    assert not any(machine.returncode for machine in machines), said
    return "".join(said), checkpoint.load(output)


@pytest.mark.parametrize("launches", [TWO_PROCESSES, TWO_MACHINES], ids=["processes", "machines"])
def test_two_processes_end_as_one_does_and_one_of_them_prints(tmp_path, photos, launches):
    (photos / "train" / "ants" / "0.png").unlink()  # the last batch has 1 photo for 2 processes
    arguments = ("--data-dir", photos, "--epochs", 2, "--batch-size", 4)
    said, two = train_together(launches, tmp_path / "two.ckpt", *arguments)
    assert said.count("\nbest validation accuracy") == 1
    one = train_in_process(tmp_path / "one.ckpt", *arguments)
    assert [r["val_accuracy"] for r in one.history] == [r["val_accuracy"] for r in two.history]
    assert all(torch.allclose(one.last[k], two.last[k], atol=1e-4) for k in one.last)
    name = "resnet.layer4.0.conv1.weight"
    first, alone, together = model.pretrained(2).state_dict()[name], one.last[name], two.last[name]
    assert (together - alone).abs().max() < (first - alone).abs().max() / 10


def test_several_processes_save_the_statistics_with_which_they_measured(tmp_path):
    photos = split_folder(tmp_path / "photos", 4, 2)
    arguments = ("--data-dir", photos, "--from-scratch", "--epochs", 1, "--lr", 0.1)
    _, state = train_together(TWO_PROCESSES, tmp_path / "two.ckpt", *arguments)
    val = dataset.Photos(photos, state.photos["val"], state.classes, whole=False)
    with torch.no_grad():
        logits = load_best(state)(torch.stack([val[i] for i in range(len(val))]))
    loss, _ = metrics.loss_and_accuracy(logits, val.labels)
    assert loss == pytest.approx(state.history[-1]["val_loss"], rel=1e-3)
