"""Short trainings for the tests, in this process and as people start them."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from helpers import COLOURS, PROJECT, split_folder, write_pictures
from PIL import Image
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import train
from simplestack.report import learning_curve, report
from simplestack.training import checkpoint, model
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.options import parse_arguments


def write_weights(torch_home):
    """Write random weights where torchvision looks for ImageNet's."""
    torch.manual_seed(1)
    file = torch_home / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(model.Classifier(1000).resnet.state_dict(), file)
    return torch_home


class SmallResNet(ResNet):
    """ResNet-18 with half of its blocks and a quarter of its channels: 16 at least, as PyTorch's
    convolutions on CPUs may write beyond their memory with fewer.
    """

    def __init__(self, num_classes, **_):
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes)
        self.conv1 = nn.Conv2d(3, 16, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1, self.fc = nn.BatchNorm2d(16), nn.Linear(128, num_classes)

    def _make_layer(self, block, planes, *args, **options):
        self.inplanes = min(self.inplanes, planes // 4)
        return super()._make_layer(block, planes // 4, *args, **options)


@contextmanager
def small_network(torch_home):
    """Let a small network, with random weights, take the place of ResNet-18 and ImageNet's.

    Its learning curve has one draw.
    """
    with pytest.MonkeyPatch.context() as replaced:
        replaced.setattr(model, "resnet18", SmallResNet)
        replaced.setattr(learning_curve, "MAX_DRAWS", 1)
        replaced.setenv("TORCH_HOME", str(write_weights(torch_home)))
        yield


def interrupted_in(number):
    """Press Ctrl-C in an epoch."""

    def training_batches(photos, epoch, *arguments, original=train.training_batches):
        if epoch == number:
            raise KeyboardInterrupt
        return original(photos, epoch, *arguments)

    return patch.object(train, "training_batches", training_batches)


def train_in_process(output, *arguments):
    """Train on the CPU in this process; return the checkpoint."""
    run_training("--output", output, "--device", "cpu", "--save-to-bento", "no", *arguments)
    return checkpoint.load(Path(output))


def run_training(*arguments):
    train.main(parse_arguments([str(argument) for argument in arguments]))


def start_training(*arguments, program=("train.py",)):
    """Start a training as people do, with its output in a pipe."""
    options = (*map(str, arguments), "--device", "cpu", "--save-to-bento", "no")
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    start = {"cwd": PROJECT, "start_new_session": True, "text": True}
    return subprocess.Popen([sys.executable, *program, *options], **start, **pipes)


def stop_at(process, line, number, *, group=False):
    """Send a signal at a line with that start, maybe to all of a group; return what follows."""
    with process:
        if any(printed.startswith(line) for printed in process.stdout):
            (os.killpg if group else os.kill)(process.pid, number)
        return process.stdout.read()


def same_weights(first, second):
    """Tell whether two sets of weights are the same, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def report_mistakes(folder):
    """Train on photos of which one is wrong, and two files are skipped; return the report."""
    photos = split_folder(folder / "photos <b>")
    Image.new("RGB", (300, 300), COLOURS["bees"]).save(photos / "val" / "ants" / "wrong.png")
    (photos / "train" / "bees" / "broken.jpg").write_text("no photo")
    (photos / "val" / "bees" / "notes.txt").write_text("buy honey")
    path = photos.with_name("a.ckpt")
    train_in_process(path, "--data-dir", photos, "--epochs", 1, "--seed", 3)
    return report.page(path)


def report_1000_classes(folder):
    """Return a report on 1,000 classes with long names, two photos of each, all skipped."""
    classes = [f"a class with a rather long name {i}" for i in range(1000)]
    names = [f"val/{name}/{i}.png" for name in classes for i in range(2)]
    arguments = {"recipe": "lp-ft", "from_scratch": False, "data_dir": str(folder)}
    row = {"loss": 1.0, "accuracy": 1.0, "val_accuracy": 1.0, "seconds": 9.0}
    history = [{**row, "epoch": i, "val_loss": float(i)} for i in (1, 2)]
    recorded = {"train": [name.replace("val", "train") for name in names], "val": names}
    logits = 99 * torch.eye(1000).repeat_interleave(2, 0)
    logits[14] = torch.eye(1000)[3]  # one of class 7
    write_pictures(folder / "val", 1, (classes[7],))
    state = Checkpoint(classes, recorded, arguments, "", {}, history=history, val_logits=logits)
    state.best = model.Classifier(1000).state_dict()
    state.skipped = [f"{name}: damaged" for name in names]
    checkpoint.save(folder / "a.ckpt", state)
    report.write(folder / "a.ckpt")
    return report.page(folder / "a.ckpt")
