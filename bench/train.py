"""Race whole commands, from interpreter to report: train.py against the tutorial's own loop.

    python -m bench.train | tee bench/results/train.txt
    python -m bench.train --busy                   # what a busy neighbour costs
    python -m bench.train --ablate                 # what each choice of the recipe saves
    python -m bench.train --device cuda            # 25 epochs, and how busy they keep the GPU

The commands take turns, so that other load on the machine slows all of them. The tutorial's loop
(bench/tutorial.py) is long: it is timed for --tutorial-epochs, of which the rest is a multiple.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import machine
from simplestack.training.options import parse_arguments

PROJECT = Path(__file__).parent.parent
TUTORIAL_EPOCHS = 25
BUSY = "while True: pass"
CHOICES = {  # what the recipe would have without each
    "the recipe": {},
    "all stages trained, none frozen": {"frozen_stages": 0},
    "crops of 224 pixels instead of 176": {"crop": 224},
    "8 epochs instead of 4": {"epochs": 8},
}
CHANGED = """
import dataclasses, runpy, sys
from simplestack.training.recipes import RECIPES
RECIPES["lp-ft"] = dataclasses.replace(RECIPES["lp-ft"], **{})
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def timed(*command: object) -> tuple[float, list[float], str]:
    """Run a Python command; return its seconds, those until each epoch ended, and its output."""
    started, at, lines = time.perf_counter(), [], []
    with subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout  # noqa: S101  (for mypy)
        for line in process.stdout:
            lines.append(line)
            if line.startswith(("epoch", "linear probe")):
                at.append(time.perf_counter() - started)
    if process.returncode:
        sys.exit(f"{command} ended with {process.returncode}")
    return time.perf_counter() - started, at, "".join(lines)


def tutorial(data_dir: Path, epochs: int) -> float:
    """Return the seconds of the tutorial's 25 epochs, from a run of fewer."""
    seconds, at, _ = timed("-m", "bench.tutorial", "--data-dir", data_dir, "--epochs", epochs)
    return seconds + (TUTORIAL_EPOCHS - epochs) * (at[-1] - at[0]) / (epochs - 1)


def ours(
    data_dir: Path, *options: object, program: tuple[str, ...] = ("train.py",)
) -> tuple[float, float, str]:
    """Train; return the seconds, those of an epoch of fine-tuning, and the result."""
    with tempfile.TemporaryDirectory() as folder:
        output = ("--output", Path(folder, "run.ckpt"), "--save-to-bento", "no")
        seconds, at, text = timed(*program, "--data-dir", data_dir, *output, *options)
    epoch = (at[-1] - at[0]) / (len(at) - 1) if len(at) > 1 else 0.0
    found = re.search(r"validation accuracy ([\d.]+)", text)
    return seconds, epoch, found[1] if found else ""


@contextmanager
def neighbour() -> Iterator[None]:
    """Keep one core busy."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def race(data_dir: Path, rounds: int, epochs: int) -> None:
    """Take turns; print the seconds and the ratio."""
    theirs, default, frozen = [], [], []
    for _ in range(rounds):
        theirs.append(tutorial(data_dir, epochs))
        seconds, _, accuracy = ours(data_dir)
        default.append(seconds)
        frozen.append(ours(data_dir, "--freeze")[0])
        print(
            f"the tutorial's loop {theirs[-1]:6.1f} s   python train.py {default[-1]:5.1f} s"
            f" (accuracy {accuracy})   --freeze {frozen[-1]:4.1f} s",
            flush=True,
        )
    times = [a / b for a, b in zip(theirs, default, strict=True)]
    print(f"python train.py: {statistics.median(times):.1f} times as fast (median)")


def busy(data_dir: Path, rounds: int) -> None:
    """Train alone and beside a busy process, in turns; print what an epoch takes."""
    ratios = []
    for _ in range(rounds):
        alone = ours(data_dir)[1]
        with neighbour():
            beside = ours(data_dir)[1]
        ratios.append(beside / alone)
        print(f"an epoch: {alone:.1f} s alone, {beside:.1f} s beside a busy process", flush=True)
    print(f"{statistics.median(ratios):.2f} times as long (median)")


def ablate(data_dir: Path, rounds: int) -> None:
    """Train without each of the choices, in turns; print the seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in CHOICES}
    for _ in range(rounds):
        for name, fields in CHOICES.items():
            program = ("-c", CHANGED.replace("{}", repr(fields)))
            taken, epoch, accuracy = ours(data_dir, program=program)
            seconds[name].append(taken)
            print(f"{name:40} {taken:6.1f} s, an epoch {epoch:5.1f} s, {accuracy}", flush=True)
    whole = statistics.median(seconds["the recipe"])
    for name, values in seconds.items():
        print(f"{name:40} {statistics.median(values) / whole:.2f} times as long (median)")


def on_device(data_dir: Path, device: str, rounds: int) -> None:
    """Train for 25 epochs on a device, several times; print how long that takes.

    Of one of CUDA's GPUs, print for what share of an epoch it computes, too.
    """
    options: tuple[object, ...] = ("--device", device, "--epochs", TUTORIAL_EPOCHS)
    for _ in range(rounds):
        seconds, epoch, accuracy = ours(data_dir, *options)
        print(
            f"{TUTORIAL_EPOCHS} epochs {TUTORIAL_EPOCHS * epoch:.1f} s, from command to report"
            f" {seconds:.1f} s (accuracy {accuracy})",
            flush=True,
        )
    if device.startswith("cuda"):
        shares = computing(data_dir, *options)
        print(f"the GPU computes for {statistics.median(shares):.0%} of an epoch (median)")


def computing(data_dir: Path, *options: object) -> list[float]:
    """Train in this process; return for what share of each epoch the GPU computes."""
    # Imported here, as all others train in processes of their own.
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

    import train  # noqa: PLC0415

    train_one_epoch, shares = train.train_one_epoch, []

    def profiled(*args: Any) -> tuple[float, float]:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            started = time.perf_counter()
            result = train_one_epoch(*args)  # which waits for the GPU at its end
            seconds = time.perf_counter() - started
        events = [e for e in profiler.events() or [] if e.device_type.name == "CUDA"]
        kernels = [e.time_range.elapsed_us() for e in events if not e.is_user_annotation]
        shares.append(sum(kernels) / 1e6 / seconds)  # there is one stream
        return result

    with tempfile.TemporaryDirectory() as folder:
        output = ("--output", Path(folder, "run.ckpt"), "--save-to-bento", "no")
        words = ("--data-dir", data_dir, *options, *output)
        with unittest.mock.patch.object(train, "train_one_epoch", profiled):
            train.main(parse_arguments([*map(str, words)]))
    return shares


def main() -> None:
    """Run the race."""
    parser = argparse.ArgumentParser(description="Race train.py against the tutorial's loop.")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: data)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--tutorial-epochs", type=int, default=3, help="2 to 25 (default: 3)")
    parser.add_argument("--busy", action="store_true", help="only beside a busy process")
    parser.add_argument("--ablate", action="store_true", help="only without parts of the recipe")
    parser.add_argument("--device", help="only on this one: cpu, cuda …")
    args = parser.parse_args()
    print(machine.describe())
    if args.ablate:
        ablate(args.data_dir.absolute(), args.rounds)
    elif args.device:
        on_device(args.data_dir.absolute(), args.device, args.rounds)
    elif args.busy:
        busy(args.data_dir.absolute(), args.rounds)
    else:
        race(args.data_dir.absolute(), args.rounds, args.tutorial_epochs)


if __name__ == "__main__":
    main()
