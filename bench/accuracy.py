"""Compare the accuracy of the recipes, over several seeds and by cross-validation.

    python -m bench.accuracy                           # both recipes, 5 seeds
    python -m bench.accuracy --recipe lp-ft --folds 5  # the default recipe, all photos, 5 folds

Every number comes from a run of train.py of its own. "Best" is that of the epoch with the most
right answers on the validation photos themselves, as the tutorial quotes it: a little flattered.
"Last" is that of the last epoch, which nothing was chosen by. Cross-validation checks with each
photo just once, with a network that has never seen it, after the last epoch: the honest figure.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import machine
from simplestack.training import checkpoint, data, engine, metrics
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.recipe import RECIPES

PROJECT = Path(__file__).parent.parent


def train(data_dir: Path, recipe: str, seed: int) -> Checkpoint:
    """Train once, as a person would."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.ckpt")
        command = [sys.executable, str(PROJECT / "train.py")]
        command += ["--data-dir", str(data_dir), "--output", str(path)]
        command += ["--recipe", recipe, "--seed", str(seed), "--save-to-bento", "no"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return checkpoint.load(path)


def over_seeds(data_dir: Path, recipe: str, seeds: int) -> list[float]:
    """Train with several seeds on the same split; print and give the best accuracies."""
    best, last = [], []
    for seed in range(seeds):
        state = train(data_dir, recipe, seed)
        best.append(state.best_accuracy)
        last.append(state.history[-1]["val_accuracy"])
        print(f"{recipe:10} seed {seed}  best {best[-1]:.4f}  last {last[-1]:.4f}", flush=True)
    print(f"{recipe:10} best {spread(best)}  last {spread(last)}  ({seeds} seeds)\n", flush=True)
    return best


def spread(values: list[float]) -> str:
    """Return mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def cross_validate(data_dir: Path, recipe: str, folds: int) -> None:
    """Check each photo with a network that was trained on the other folds only."""
    classes = data.find_classes(data_dir)
    names = data.find_photos(data_dir, classes, seed=0)
    photos = [data_dir / name for split in data.SPLITS for name in names[split]]
    random.Random(0).shuffle(photos)  # noqa: S311  (nothing secret about it)
    photos.sort(key=lambda path: path.parent.name)  # so that each fold gets its part of each class
    right = total = 0
    for fold in range(folds):
        with tempfile.TemporaryDirectory() as folder:
            for i, path in enumerate(photos):
                split = "val" if i % folds == fold else "train"
                place = Path(folder, split, path.parent.name)
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{i}{path.suffix}").symlink_to(path.resolve())
            state = train(Path(folder), recipe, seed=0)
        of, accuracy = len(state.photos["val"]), state.history[-1]["val_accuracy"]
        right, total = right + round(accuracy * of), total + of
        print(f"{recipe:10} fold {fold + 1}/{folds}  last {accuracy:.4f} of {of}", flush=True)
    low, high = metrics.interval(right, total)
    print(
        f"{recipe:10} cross-validated {right / total:.4f} of {total} photos"
        f" (95 % confidence interval {low:.4f} to {high:.4f})"
    )


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="Compare the accuracy of the recipes.")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: data)")
    parser.add_argument("--recipe", choices=tuple(RECIPES), help="only this one")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each recipe (default: 5)")
    parser.add_argument("--folds", type=int, help="cross-validate instead, with so many folds")
    args = parser.parse_args()
    print(machine.describe())
    print(f"on {engine.Engine(engine.choose_device('auto'))}\n")
    recipes = [args.recipe] if args.recipe else list(RECIPES)
    if args.folds:
        for recipe in recipes:
            cross_validate(args.data_dir, recipe, args.folds)
        return
    best = {recipe: over_seeds(args.data_dir, recipe, args.seeds) for recipe in recipes}
    if len(best) > 1:
        ours, theirs = (statistics.mean(best[recipe]) for recipe in ("lp-ft", "tutorial"))
        print(f"lp-ft is {100 * (ours - theirs):+.2f} points from the tutorial's recipe")


if __name__ == "__main__":
    main()
