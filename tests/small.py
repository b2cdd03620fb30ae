"""What the training tests share: a few pictures, weights that need no download, short runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from simplestack.training import checkpoint, model
from simplestack.training.checkpoint import Checkpoint

PROJECT = Path(train.__file__).parent
COLOURS = {"ants": (90, 40, 20), "bees": (230, 180, 30), "wasps": (240, 230, 90)}
ODD_NAME = os.fsdecode("café".encode("latin-1"))  # as old archives unpack; not UTF-8
odd_names = pytest.mark.skipif(sys.platform == "darwin", reason="macOS has UTF-8 names only")


def pictures(folder: Path, count: int, classes: tuple[str, ...] = ("ants", "bees")) -> None:
    """Write `count` one-coloured pictures per class; no two are the same."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        red, green, blue = COLOURS.get(name, (20, 20, 200))
        for i in range(count):
            colour = (red, green, (blue + 7 * i + len(folder.name)) % 256)
            Image.new("RGB", (240 + i, 230), colour).save(folder / name / f"{i}.png")


def split_folder(folder: Path, train_count: int = 5, val_count: int = 2) -> Path:
    """Write train/ and val/ with two classes."""
    pictures(folder / "train", train_count)
    pictures(folder / "val", val_count)
    return folder


def weights(torch_home: Path) -> Path:
    """Write random weights where torchvision looks for ImageNet's."""
    torch.manual_seed(1)
    network = model.Classifier(1000).resnet
    file = torch_home / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    return torch_home


def run(output: Path, *arguments: object) -> Checkpoint:
    """Train in this process; return the checkpoint."""
    given = ["--output", output, "--device", "cpu", "--save-to-bento", "no", *arguments]
    train.main([str(argument) for argument in given])
    return checkpoint.load(output)


def start(*arguments: object, program: tuple[str, ...] = ("train.py",)) -> "subprocess.Popen[str]":
    """Start a training as people do, with its output in a pipe."""
    command = [sys.executable, *program, *arguments, "--device", "cpu", "--save-to-bento", "no"]
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=PROJECT,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Tell whether two sets of weights are the same, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
