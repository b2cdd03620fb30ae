"""Compare the accuracy of the recipes, over five seeds and by cross-validation.

    python -m bench.accuracy --recipe lp-ft
    python -m bench.accuracy --recipe tutorial
    python -m bench.accuracy --recipe lp-ft --folds 5

Each accuracy is that of a separate run of train.py. "Best" is the epoch that was best on the
validation photos themselves, as the tutorial quotes it, so it flatters a little. "Last" is the last
epoch, which nothing chose. Cross-validation is the honest figure: each photo is predicted once,
after the last epoch, by a model that has never seen it.
"""

import argparse
import csv
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import machine
from simplestack.training.metrics import interval
from simplestack.training.recipes import RECIPES

PROJECT = Path(__file__).parent.parent
SEEDS = 5


def train(data_dir: Path, recipe: str, seed: int) -> list[float]:
    """Run train.py; return the validation accuracy of each epoch."""
    command: list[str | Path] = [sys.executable, PROJECT / "train.py", "--recipe", recipe]
    command += ["--data-dir", data_dir.absolute(), "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        (history,) = Path(folder).glob("saved_models/*/history.csv")
        return [float(row["val_accuracy"]) for row in csv.DictReader(history.open())]


def over_seeds(data_dir: Path, recipe: str) -> None:
    """Train with several seeds on the same split; print the best and the last accuracies."""
    best, last = [], []
    for seed in range(SEEDS):
        epochs = train(data_dir, recipe, seed)
        best.append(max(epochs))
        last.append(epochs[-1])
        print(f"{recipe:10} seed {seed}  best {best[-1]:.4f}  last {last[-1]:.4f}", flush=True)
    print(f"{recipe:10} best {spread(best)}  last {spread(last)}  ({SEEDS} seeds)\n")


def spread(values: list[float]) -> str:
    """Return mean ± standard deviation."""
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def cross_validate(data_dir: Path, recipe: str, folds: int) -> None:
    """Predict each photo with a model that was trained on the other folds only."""
    files = sorted(data_dir.absolute().glob("*/*/*"))
    photos = [file for file in files if file.suffix != ".gif"]  # train.py skips imageNotFound.gif
    random.Random(0).shuffle(photos)  # noqa: S311  (nothing secret about it)
    photos.sort(key=lambda photo: photo.parent.name)  # a share of each class per fold
    correct = 0
    for fold in range(folds):
        with tempfile.TemporaryDirectory() as folder:
            for i, photo in enumerate(photos):
                split = "val" if i % folds == fold else "train"
                link = Path(folder, split, photo.parent.name, f"{i}.jpg")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(photo)
            accuracy = train(Path(folder), recipe, seed=0)[-1]
        count = len(photos[fold::folds])
        correct += round(accuracy * count)
        print(f"{recipe:10} fold {fold + 1}/{folds}  last {accuracy:.4f} of {count}", flush=True)
    low, high = interval(correct, len(photos))
    print(
        f"{recipe:10} cross-validated {correct / len(photos):.4f} of {len(photos)} photos"
        f" (95 % confidence interval {low:.4f} to {high:.4f})"
    )


def main() -> None:
    """Train a recipe with several seeds, or cross-validate it."""
    parser = argparse.ArgumentParser(description="Measure the accuracy of a recipe.")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: data)")
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="lp-ft")
    parser.add_argument("--folds", type=int, help="cross-validate instead, with this many folds")
    args = parser.parse_args()
    print(machine.describe())
    if args.folds:
        cross_validate(args.data_dir, args.recipe, args.folds)
    else:
        over_seeds(args.data_dir, args.recipe)


if __name__ == "__main__":
    main()
