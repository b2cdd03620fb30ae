"""Race the default recipe against the tutorial's own loop, epoch by epoch.

    python -m bench.train | tee bench/results/train.txt    # 25 epochs each
    python -m bench.train --epochs 3                       # the ratio per epoch only

The tutorial's loop is written out below as published: batches of 4, float32, photos decoded again
in every epoch, in the same process. The epochs of the two alternate, so that other load on the
machine slows both. Start-up counts for the default recipe: its time to an accuracy begins before
the first photo is read.
"""

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from tqdm import tqdm

import train as ours
from bench import machine
from simplestack.training import checkpoint, model
from simplestack.training.arguments import parse_arguments
from simplestack.training.engine import Engine, choose_device

PROJECT = Path(__file__).parent.parent
TO_TENSOR = (v2.ToImage(), v2.ToDtype(torch.float32, scale=True))
NORMALISE = v2.Normalize(list(model.MEAN), list(model.STD))
TRANSFORMS = {
    "train": v2.Compose(
        [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), *TO_TENSOR, NORMALISE]
    ),
    "val": v2.Compose([v2.Resize(256), v2.CenterCrop(224), *TO_TENSOR, NORMALISE]),
}


class Tutorial:
    """The loop of PyTorch's transfer learning tutorial."""

    def __init__(self, data_dir: Path, device: torch.device) -> None:
        self.device = device
        self.loaders = {
            split: DataLoader(
                ImageFolder(str(data_dir / split), transform, is_valid_file=readable),
                batch_size=4,
                shuffle=True,
            )
            for split, transform in TRANSFORMS.items()
        }
        self.model = model.pretrained(2).resnet.to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.001, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=7, gamma=0.1)

    def epoch(self) -> float:
        """Train for an epoch; return the validation accuracy."""
        self.model.train()
        for photos, labels in self.loaders["train"]:
            self.optimizer.zero_grad()
            logits = self.model(photos.to(self.device))
            nn.functional.cross_entropy(logits, labels.to(self.device)).backward()
            self.optimizer.step()
        self.scheduler.step()
        self.model.eval()
        correct = total = 0
        with torch.no_grad():
            for photos, labels in self.loaders["val"]:
                predicted = self.model(photos.to(self.device)).argmax(1).cpu()
                correct += int((predicted == labels).sum())
                total += len(labels)
        return correct / total


def readable(path: str) -> bool:
    """Skip imageNotFound.gif, as train.py does."""
    return not path.endswith(".gif")


class Stopwatch(io.StringIO):
    """An output that records when each epoch is printed, in seconds since it was created."""

    def __init__(self) -> None:
        super().__init__()
        self.started = time.perf_counter()
        self.at: list[float] = []

    def write(self, text: str) -> int:
        """Record the time if this starts the line of an epoch."""
        if text.startswith("epoch"):
            self.at.append(time.perf_counter() - self.started)
        return super().write(text)


def timed_run(*arguments: object) -> tuple[list[float], list[float], float]:
    """Train; return the seconds until the end of each epoch, the accuracies, and all seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.ckpt")
        options = ["--output", str(path), "--save-to-bento", "no", *map(str, arguments)]
        watch = Stopwatch()
        with contextlib.redirect_stdout(watch), contextlib.redirect_stderr(io.StringIO()):
            ours.main(options)
        total = time.perf_counter() - watch.started
        history = checkpoint.load(path).history
    return watch.at, [row["val_accuracy"] for row in history], total


def race(data_dir: Path, epochs: int) -> None:
    """Alternate the epochs of both; print their times and the ratios."""
    device = choose_device("auto")
    tutorial = Tutorial(data_dir, device)
    run = OurEpochs(data_dir, epochs)
    seconds: dict[str, list[float]] = {"tutorial": [], "ours": []}
    best, reached, clock = 0.0, 0.0, 0.0
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        accuracy = tutorial.epoch()
        seconds["tutorial"].append(time.perf_counter() - started)
        clock += seconds["tutorial"][-1]
        if accuracy > best:
            best, reached = accuracy, clock
        seconds["ours"].append(run.epoch(epoch))
        print(
            f"epoch {epoch:2}  tutorial {seconds['tutorial'][-1]:6.1f} s  accuracy {accuracy:.4f}"
            f"   ours {seconds['ours'][-1]:6.1f} s",
            flush=True,
        )
    total_tutorial, total_ours = sum(seconds["tutorial"]), sum(seconds["ours"])
    print(
        f"{epochs} epochs: tutorial {total_tutorial:.1f} s, ours {total_ours:.1f} s:"
        f" {total_tutorial / total_ours:.1f}×"
    )
    at, accuracies, total = timed_run("--data-dir", data_dir)
    print(f"the tutorial is best, {best:.4f}, after {reached:.1f} s")
    as_good = [t for t, accuracy in zip(at, accuracies, strict=True) if accuracy >= best]
    if as_good:
        print(f"ours is as good after {as_good[0]:.1f} s: {reached / as_good[0]:.0f}× sooner")
    print(f"ours ends after {total:.1f} s with best {max(accuracies):.4f}")
    print(f"--freeze takes {timed_run('--data-dir', data_dir, '--freeze')[2]:.1f} s")


class OurEpochs:
    """The default recipe, one epoch at a time: full fine-tuning, checkpoint and all."""

    def __init__(self, data_dir: Path, epochs: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name, "run.ckpt")
        args = parse_arguments(["--data-dir", str(data_dir), "--epochs", str(epochs)])
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            self.run = ours.prepare(args, Engine.start("auto"), path)

    def epoch(self, number: int) -> float:
        """Train for an epoch; return the seconds that it took."""
        with contextlib.redirect_stdout(io.StringIO()):
            ours.train_epoch(self.run, self.run.model, number, tqdm(disable=True))
        return self.run.checkpoint.history[-1]["seconds"]


def main() -> None:
    """Run the race."""
    parser = argparse.ArgumentParser(description="Race the default recipe against the tutorial.")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: data)")
    parser.add_argument("--epochs", type=int, default=25, help="of each (default: 25)")
    args = parser.parse_args()
    print(machine.describe())
    print(f"on {Engine(choose_device('auto'))}")
    race(args.data_dir, args.epochs)


if __name__ == "__main__":
    main()
