"""Time whole commands, from interpreter to report: train.py against the tutorial's own loop.

    python -m bench.train | tee bench/results/train.txt
    python -m bench.train --ablate      # without each of the recipe's choices
    python -m bench.train --busy        # beside a process that keeps one core busy

The commands take turns, so that other load on the machine slows all of them. Of the tutorial's 25
epochs (bench/tutorial.py), two are run; the second stands for the others.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import machine

PROJECT = Path(__file__).parent.parent
ROUNDS = 3
TRAIN = [str(PROJECT / "train.py")]
TUTORIAL = ["-m", "bench.tutorial", "--epochs", "2"]
NOT_RUN = 23  # epochs of the tutorial
CONTENDERS = {
    "python train.py": TRAIN,
    "python train.py --freeze": [*TRAIN, "--freeze"],
    "the tutorial's loop": TUTORIAL,
}
CHANGED = """
import dataclasses, runpy, sys
from simplestack.training.recipes import RECIPES
RECIPES["lp-ft"] = dataclasses.replace(RECIPES["lp-ft"], **{})
sys.argv[0] = {!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CHOICES = {
    name: ["-c", CHANGED.format(fields, TRAIN[0])]
    for name, fields in (
        ("the recipe", {}),
        ("all stages trained, none frozen", {"frozen_stages": 0}),
        ("crops of 224 pixels instead of 176", {"crop": 224}),
        ("8 epochs instead of 4", {"epochs": 8}),
    )
}


def timed(command: list[str], data_dir: Path) -> tuple[float, float, str]:
    """Run a Python command; return its seconds, those of an epoch, and its last accuracy."""
    started, epoch_ends, accuracy = time.perf_counter(), [], ""
    with (
        tempfile.TemporaryDirectory() as folder,  # for saved_models/
        subprocess.Popen(
            [sys.executable, *command, "--data-dir", str(data_dir)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process,
    ):
        for line in process.stdout or ():
            if line.startswith(("epoch", "linear probe")):
                epoch_ends.append(time.perf_counter() - started)
            accuracy = (re.findall(r"accuracy ([\d.]+)", line) or [accuracy])[-1]
    if process.returncode:
        sys.exit(f"error: {command} ended with {process.returncode}")
    seconds = time.perf_counter() - started
    epoch = (epoch_ends[-1] - epoch_ends[0]) / max(1, len(epoch_ends) - 1)
    return seconds + (NOT_RUN * epoch if command == TUTORIAL else 0), epoch, accuracy


def race(commands: dict[str, list[str]], data_dir: Path) -> None:
    """Let commands take turns; print their seconds, and how many times as long as the first."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            taken, epoch, accuracy = timed(command, data_dir)
            seconds[name].append(taken)
            print(f"{name:35} {taken:6.1f} s, an epoch {epoch:5.1f} s, {accuracy}", flush=True)
    first = next(iter(seconds.values()))
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, first, strict=True))
        print(f"{name:35} {ratio:.2f} times as long (median)")


def busy(data_dir: Path) -> None:
    """Train with and without a busy process, in turns; print the seconds of an epoch."""
    ratios = []
    for _ in range(ROUNDS):
        _, undisturbed, _ = timed(TRAIN, data_dir)
        with machine.beside(machine.BUSY):
            _, beside, _ = timed(TRAIN, data_dir)
        ratios.append(beside / undisturbed)
        print(f"an epoch: {undisturbed:.1f} s, beside a busy process {beside:.1f} s", flush=True)
    print(f"{statistics.median(ratios):.2f} times as long (median)")


def main() -> None:
    """Run the commands, under the conditions that the options choose."""
    parser = argparse.ArgumentParser(description="Race train.py against the tutorial's loop.")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: data)")
    parser.add_argument("--busy", action="store_true", help="only beside a busy process")
    parser.add_argument("--ablate", action="store_true", help="only without parts of the recipe")
    args = parser.parse_args()
    print(machine.describe())
    if args.busy:
        busy(args.data_dir.absolute())
    else:
        race(CHOICES if args.ablate else CONTENDERS, args.data_dir.absolute())


if __name__ == "__main__":
    main()
