"""Compare the accuracy of the recipes, over several seeds and by cross-validation.

    python -m bench.accuracy                           # both recipes, 5 seeds
    python -m bench.accuracy --recipe lp-ft --folds 5  # the default recipe, all photos, 5 folds

Every accuracy is that of a separate run of train.py. "Best" is the epoch that was best on the
validation photos themselves, as the tutorial quotes it, so it flatters a little. "Last" is the last
epoch, chosen by nothing. Cross-validation is the honest figure: each photo is predicted once, after
the last epoch, by a model that has never seen it.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import machine
from simplestack.training import checkpoint, folders, metrics
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.distributed import World, choose_device
from simplestack.training.recipes import RECIPES

PROJECT = Path(__file__).parent.parent


def train(data_dir: Path, recipe: str, seed: int) -> Checkpoint:
    """Run train.py; return its checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.ckpt")
        command = [sys.executable, str(PROJECT / "train.py")]
        command += ["--data-dir", str(data_dir), "--output", str(path)]
        command += ["--recipe", recipe, "--seed", str(seed), "--save-to-bento", "no"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return checkpoint.load(path)


def over_seeds(data_dir: Path, recipe: str, seeds: int) -> list[float]:
    """Train with several seeds on the same split; print and return the best accuracies."""
    best, last = [], []
    for seed in range(seeds):
        result = train(data_dir, recipe, seed)
        best.append(result.best_accuracy)
        last.append(result.history[-1]["val_accuracy"])
        print(f"{recipe:10} seed {seed}  best {best[-1]:.4f}  last {last[-1]:.4f}", flush=True)
    print(f"{recipe:10} best {spread(best)}  last {spread(last)}  ({seeds} seeds)\n", flush=True)
    return best


def spread(values: list[float]) -> str:
    """Return mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def cross_validate(data_dir: Path, recipe: str, folds: int) -> None:
    """Predict each photo with a model that was trained on the other folds only."""
    classes = folders.find_classes(data_dir)
    split_names = folders.find_photos(data_dir, classes, seed=0)
    names = [name for split in folders.SPLITS for name in split_names[split]]
    random.Random(0).shuffle(names)  # noqa: S311  (nothing secret about it)
    names.sort(key=lambda name: folders.class_of(name, classes))  # a share of each class per fold
    correct = total = 0
    for fold in range(folds):
        with tempfile.TemporaryDirectory() as folder:
            for i, name in enumerate(names):
                path = (data_dir / name).resolve()
                split = "val" if i % folds == fold else "train"
                class_folder = Path(folder, split, folders.class_of(name, classes))
                class_folder.mkdir(parents=True, exist_ok=True)
                (class_folder / f"{i}{path.suffix}").symlink_to(path)
            result = train(Path(folder), recipe, seed=0)
        count, accuracy = len(result.photos["val"]), result.history[-1]["val_accuracy"]
        correct += round(accuracy * count)
        total += count
        print(f"{recipe:10} fold {fold + 1}/{folds}  last {accuracy:.4f} of {count}", flush=True)
    low, high = metrics.interval(correct, total)
    print(
        f"{recipe:10} cross-validated {correct / total:.4f} of {total} photos"
        f" (95 % confidence interval {low:.4f} to {high:.4f})"
    )


def main() -> None:
    """Compare the recipes, or cross-validate."""
    parser = argparse.ArgumentParser(description="Compare the accuracy of the recipes.")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: data)")
    parser.add_argument("--recipe", choices=tuple(RECIPES), help="only this one")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each recipe (default: 5)")
    parser.add_argument("--folds", type=int, help="cross-validate instead, with this many folds")
    args = parser.parse_args()
    print(machine.describe())
    print(f"on {World(choose_device('auto'))}\n")
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
