"""Short trainings for the tests, in this process and as people start them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from helpers import COLOURS, PROJECT, split_folder, write_pictures
from PIL import Image
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import train
from simplestack.training import checkpoint, model, report
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.options import parse_arguments

TORCHRUN = ("-m", "torch.distributed.run")


def write_weights(torch_home: Path) -> Path:
    """Write random weights where torchvision looks for ImageNet's."""
    torch.manual_seed(1)
    network = model.Classifier(1000).resnet
    file = torch_home / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    return torch_home


class SmallResNet(ResNet):
    """ResNet-18 with a quarter of its channels and half of its blocks: trains in half a second.

    Its channels are multiples of 16: with fewer, PyTorch's convolutions on CPUs may write beyond
    their memory.
    """

    def __init__(self, weights: None = None, num_classes: int = 1000) -> None:  # noqa: ARG002
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes)
        self.conv1 = nn.Conv2d(3, 16, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(128, num_classes)

    def _make_layer(self, block: Any, planes: int, *args: Any, **options: Any) -> nn.Sequential:
        if planes == 64:  # the first one
            self.inplanes = 16
        return super()._make_layer(block, planes // 4, *args, **options)


@contextmanager
def small_network(torch_home: Path) -> Iterator[None]:
    """Let a small network, and random weights for it, take the place of ResNet-18 and ImageNet's.

    What is tested of the run, its files and its report doesn't depend on the network.
    """
    with pytest.MonkeyPatch.context() as replaced:
        replaced.setattr(model, "resnet18", SmallResNet)
        replaced.setenv("TORCH_HOME", str(write_weights(torch_home)))
        yield


def interrupted_in(number: int) -> Any:
    """Let Ctrl-C be pressed at the end of an epoch, before any of it is saved."""
    original = train.train_one_epoch

    def train_one_epoch(*arguments: Any) -> tuple[float, float]:
        done = original(*arguments)
        if arguments[6] == number:  # the epoch
            raise KeyboardInterrupt
        return done

    return patch.object(train, "train_one_epoch", train_one_epoch)


def report_of_1000_classes(folder: Path) -> Path:
    """Write a report on 1,000 classes with long names, two photos of each, all skipped."""
    classes = [f"a class with a rather long name {i}" for i in range(1000)]
    names = [f"val/{name}/{i}.png" for name in classes for i in range(2)]
    arguments = {"recipe": "lp-ft", "from_scratch": False, "data_dir": str(folder)}
    row = {"epoch": 1, "loss": 1.0, "accuracy": 1.0, "val_loss": 1.0, "val_accuracy": 1.0}
    history = [{**row, "seconds": 9.0}, {**row, "epoch": 2, "val_loss": 2.0, "seconds": 9.0}]
    recorded = {"train": [name.replace("val", "train") for name in names], "val": names}
    state = Checkpoint(classes, recorded, arguments, "", {}, history=history)
    val = Photos(folder, names, classes, whole=False)
    logits = 99 * torch.eye(1000)[val.labels]
    logits[14] = 0.0
    logits[14, 3] = 1.0
    write_pictures(folder / "val", 1, (classes[7],))
    report.write_skipped(folder / "a", [f"{name}: damaged" for name in names])
    report.write_report(folder / "a.ckpt", state, model.Classifier(1000).eval(), val, logits)
    return folder / "a" / "report.html"


def report_with_mistakes(folder: Path) -> Path:
    """Train on photos one of which it gets wrong, beside files that it skips; return the report."""
    photos = split_folder(folder / "photos <b>")
    Image.new("RGB", (300, 300), COLOURS["bees"]).save(photos / "val" / "ants" / "wrong.png")
    (photos / "train" / "bees" / "broken.jpg").write_text("no photo")
    (photos / "val" / "bees" / "notes.txt").write_text("buy honey")
    train_in_process(folder / "a.ckpt", "--data-dir", photos, "--epochs", 1, "--seed", 3)
    return folder / "a" / "report.html"


def train_in_process(output: Path, *arguments: object) -> Checkpoint:
    """Train on the CPU in this process; return the checkpoint."""
    given = ["--output", output, "--device", "cpu", "--save-to-bento", "no", *arguments]
    run_training(*given)
    return checkpoint.load(output)


def run_training(*arguments: object) -> None:
    """Run train.py in this process."""
    train.main(parse_arguments([str(argument) for argument in arguments]))


def start_training(
    *arguments: object, program: tuple[str, ...] = ("train.py",)
) -> "subprocess.Popen[str]":
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


def stop_at(
    process: "subprocess.Popen[str]", line: str, number: int, *, group: bool = False
) -> str:
    """Send a signal once a line with that start has been printed; return what follows it.

    The `group` gets it with all its processes, as when Ctrl-C is typed.
    """
    with process:
        assert process.stdout
        for printed in process.stdout:
            if printed.startswith(line):
                (os.killpg if group else os.kill)(process.pid, number)
                break
        return process.stdout.read()


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Tell whether two sets of weights are the same, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
