"""Training on two machines, on the largest photos, to a Bento."""

import shutil

import pytest
import torch
from helpers import python, split_folder
from PIL import Image
from trainings import TORCHRUN, start_training, train_in_process, write_weights

from simplestack.packing import local_server
from simplestack.report.report import load_best
from simplestack.training import checkpoint, dataset, metrics


@pytest.fixture(autouse=True)
def torch_home(tmp_path, monkeypatch):
    """Random weights, where torchvision looks for ImageNet's."""
    monkeypatch.setenv("TORCH_HOME", str(write_weights(tmp_path / "torch")))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_two_machines_end_with_nearly_the_weights_of_one(tmp_path):
    photos, path = split_folder(tmp_path / "photos"), tmp_path / "two.ckpt"
    arguments = ("--data-dir", photos, "--epochs", 1, "--batch-size", 4)
    one = train_in_process(tmp_path / "one.ckpt", *arguments)
    meet = ("--nnodes=2", "--master_addr=127.0.0.1", f"--master_port={local_server.free_port()}")
    programs = [(*TORCHRUN, *meet, f"--node_rank={i}", "train.py") for i in range(2)]
    machines = [start_training(*arguments, "--output", path, program=p) for p in programs]
    said = [machine.communicate()[0] for machine in machines]
    assert ["best validation accuracy" in text for text in said] == [True, False], said
    two = checkpoint.load(path)
    assert all(torch.allclose(one.last[k], two.last[k], atol=1e-4) for k in one.last)


def test_what_several_processes_measure_is_what_is_saved(tmp_path):
    photos, path = split_folder(tmp_path / "photos", 4, 2), tmp_path / "two.ckpt"
    arguments = ("--data-dir", photos, "--from-scratch", "--epochs", 1, "--lr", 0.1)
    program = (*TORCHRUN, "--standalone", "--nproc_per_node=2", "train.py")
    process = start_training(*arguments, "--output", path, program=program)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    state = checkpoint.load(path)  # whose batch norm has statistics of its own photos
    val = dataset.Photos(photos, state.photos["val"], state.classes, whole=False)
    pixels = torch.stack([val[i] for i in range(len(val))])
    with torch.no_grad():
        logits = load_best(state)(pixels)
    loss, _ = metrics.loss_and_accuracy(logits, val.labels)
    assert loss == pytest.approx(state.history[-1]["val_loss"], rel=1e-3)


def test_a_photo_of_200_megapixels_is_read(tmp_path):
    photos = split_folder(tmp_path / "photos")
    Image.new("L", (16_320, 12_240)).save(photos / "train" / "ants" / "large.jpg", quality=20)
    large = dataset.Photos(photos, ["train/ants/large.jpg"], ["ants", "bees"], whole=True)
    assert large[0].shape == (320, 320, 3)


def test_a_finished_run_is_packed_if_that_is_wanted(bento, trained, model_file, tmp_path):
    path = shutil.copy(trained, tmp_path / "a.ckpt")
    shutil.copy(model_file, tmp_path / "a.onnx")
    result = python("train.py", "-c", path, "--save-to-bento", "yes")
    assert result.returncode == 0, result.stderr
    assert "is packed already" in result.stdout
    assert f"tag: {bento.parent.name}:" in result.stdout
