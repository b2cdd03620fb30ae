"""Short trainings for the tests, in this process and as people start them."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from helpers import PROJECT

import train
from simplestack.training import checkpoint, model
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.options import parse_arguments


def write_weights(torch_home: Path) -> Path:
    """Write random weights where torchvision looks for ImageNet's."""
    torch.manual_seed(1)
    network = model.Classifier(1000).resnet
    file = torch_home / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    return torch_home


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
