"""Train on more and more generated photos; print the time and the memory that it takes.

    python -m bench.scale | tee bench/results/scale.txt    # 2,000 and 20,000 photos

The photos are JPEGs of 500×375 pixels, no two of them alike, half a megabyte each when decoded. One
epoch of fine-tuning follows the linear probe. The memory is the maximum over all processes of
train.py together, sampled every half second, with shared pages counted once.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from bench import machine

PROJECT = Path(__file__).parent.parent
SIZE = (500, 375)
CLASSES = 4
INTERVAL = 0.5  # seconds between two samples of the memory


def draw(folder: Path, number: int) -> None:
    """Write one photo: smooth noise, in a colour of its class."""
    label = number % CLASSES
    rng = np.random.default_rng(number)
    noise = rng.integers(0, 160, (24, 32, 3)) + np.eye(4, 3, dtype=int)[label] * 90
    image = Image.fromarray(noise.astype(np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    image.save(folder / f"class{label}" / f"{number}.jpg", quality=90)


def generate(folder: Path, start: int, stop: int) -> None:
    """Write photos number `start` to `stop` - 1 into the folders of their classes."""
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(exist_ok=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(draw, [folder] * (stop - start), range(start, stop), chunksize=100))


def train(data_dir: Path, cache: float) -> tuple[float, int]:
    """Train for one epoch; return the seconds that it took and the maximum memory in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        command: list[str | Path] = [sys.executable, PROJECT / "train.py", "--data-dir", data_dir]
        command += ["--epochs", "1", "--output", Path(folder, "run.ckpt"), "--cache", str(cache)]
        started, max_memory = time.perf_counter(), 0
        process = subprocess.Popen([*command, "--save-to-bento", "no"], stdout=subprocess.DEVNULL)
        while process.poll() is None:
            max_memory = max(max_memory, machine.memory(process.pid))
            time.sleep(INTERVAL)
        if process.returncode:
            sys.exit(f"train.py ended with {process.returncode}")
        return time.perf_counter() - started, max_memory


def main() -> None:
    """Train on each number of photos."""
    parser = argparse.ArgumentParser(description="Train on more and more generated photos.")
    parser.add_argument("--photos", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--cache", type=float, default=0.5, help="GB, as of train.py")
    args = parser.parse_args()
    print(machine.describe())
    with tempfile.TemporaryDirectory() as folder:
        existing = 0
        for count in sorted(args.photos):
            generate(Path(folder), existing, count)
            existing = count
            seconds, max_memory = train(Path(folder), args.cache)
            print(
                f"{count:6,} photos, --cache {args.cache:g}: {seconds / 60:.1f} minutes, at most"
                f" {max_memory / 1e9:.2f} GB",
                flush=True,
            )


if __name__ == "__main__":
    main()
