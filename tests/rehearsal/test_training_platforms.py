"""Training on two machines, with other start methods, on the largest photos, to a Bento."""

import sys
from pathlib import Path

import pytest
import torch
from helpers import PROJECT, python, run, split_folder
from PIL import Image
from trainings import TORCHRUN, start_training, train_in_process, write_weights

from simplestack.packing import local_server
from simplestack.training import checkpoint, dataset, folders


@pytest.fixture(autouse=True)
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights, where torchvision looks for ImageNet's."""
    monkeypatch.setenv("TORCH_HOME", str(write_weights(tmp_path / "torch")))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_two_machines_end_with_nearly_the_weights_of_one(tmp_path: Path) -> None:
    photos, path = split_folder(tmp_path / "photos"), tmp_path / "two.ckpt"
    arguments = ("--data-dir", photos, "--epochs", 1, "--batch-size", 4)
    one = train_in_process(tmp_path / "one.ckpt", *arguments)
    meet = ("--nnodes=2", "--master_addr=127.0.0.1", f"--master_port={local_server.free_port()}")
    machines = [
        start_training(
            *arguments,
            "--output",
            path,
            program=(*TORCHRUN, *meet, f"--node_rank={i}", "train.py"),
        )
        for i in range(2)
    ]
    said = [machine.communicate()[0] for machine in machines]
    assert ["best validation accuracy" in text for text in said] == [True, False], said
    two = checkpoint.load(path)
    assert all(torch.allclose(one.last[k], two.last[k], atol=1e-4) for k in one.last)


def test_processes_read_photos_with_any_start_method(tmp_path: Path) -> None:
    folder = split_folder(tmp_path / "data", 8, 2)
    script = (
        "import multiprocessing, runpy; multiprocessing.set_start_method('forkserver');"
        " runpy.run_path('train.py', run_name='__main__')"
    )
    arguments = ("--data-dir", folder, "--output", tmp_path / "a.ckpt", "--cache", 0.001)
    quick = ("--from-scratch", "--epochs", 1, "--save-to-bento", "no")
    result = run(sys.executable, "-c", script, *arguments, *quick, cwd=PROJECT)
    assert result.returncode == 0, result.stderr


def test_a_photo_of_200_megapixels_is_read(tmp_path: Path) -> None:
    photos = split_folder(tmp_path / "photos")
    large = photos / "train" / "ants" / "large.jpg"
    Image.new("L", (16_320, 12_240)).save(large, quality=20)
    classes = folders.find_classes(photos)
    names = folders.find_photos(photos, classes, seed=0)
    train, _ = dataset.open_photos(photos, names, classes, budget=1e9, device=torch.device("cpu"))
    assert "train/ants/large.jpg" in train.names


def test_a_finished_run_is_packed_if_that_is_wanted(
    bento: Path, trained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(trained.read_bytes())
    result = python("train.py", "-c", path, "--save-to-bento", "yes")
    assert result.returncode == 0, result.stderr
    assert "is packed already" in result.stdout
    assert f"tag: {bento.parent.name}:" in result.stdout
