"""How many wrong labels the report finds: those of some photos are exchanged for another class's.

    python -m bench.labels | tee bench/results/labels.txt

The photos are those of the newest checkpoint; the features are those before fine-tuning, as in a
report.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from bench import machine
from simplestack.report import label_check
from simplestack.training import checkpoint
from simplestack.training.dataset import EVALUATED, Photos, load_all
from simplestack.training.distributed import World
from simplestack.training.evaluate import predict
from simplestack.training.model import pretrained
from simplestack.training.recipes import RECIPES

COUNTS = (4, 12, 20, 40)
DRAWS = 5
MANY, CLASSES = 20_000, 10  # random features, to measure the time


def main() -> None:
    """Print how many photos are named, of those with an exchanged label and of the others."""
    parser = argparse.ArgumentParser(description="Count the wrong labels that are found.")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="default: newest in saved_models")
    args = parser.parse_args()
    state = checkpoint.load(args.checkpoint or checkpoint.newest(Path("saved_models")))
    names = state.photos["train"] + state.photos["val"]
    photos = Photos(Path(state.arguments["data_dir"]), names, state.classes, whole=False)
    world = World(torch.device("cpu"))
    load_all(photos, budget=EVALUATED, device=world.device)
    classes = len(state.classes)
    features, _ = predict(pretrained(classes), photos, world, RECIPES["lp-ft"])
    print(machine.describe())
    print(f"{len(photos)} photos; as they are, {len(doubted(features, photos.labels))} are named")
    for count in COUNTS:
        found = []
        for draw in range(DRAWS):
            rng, labels = np.random.default_rng(draw), photos.labels.clone()
            changed = rng.choice(len(photos), count, replace=False)
            labels[changed] = (
                labels[changed] + torch.from_numpy(rng.integers(1, classes, count))
            ) % (classes)
            named = doubted(features, labels)
            found.append([len(named & {*changed.tolist()}), len(named - {*changed.tolist()})])
        right, others = np.mean(found, 0)
        print(f"{count} exchanged: {right:.1f} of them are named, and {others:.1f} others")
    for name, some, labels in (
        ("these photos", features, photos.labels),
        (f"{MANY} random features", torch.rand(MANY, 512), torch.arange(MANY) % CLASSES),
    ):
        began = time.perf_counter()
        doubted(some, labels)
        print(f"{name}: {time.perf_counter() - began:.1f} s")


def doubted(features: torch.Tensor, labels: torch.Tensor) -> set[int]:
    """Return the photos that are named."""
    probabilities = label_check.cross_validate(features, labels, int(labels.max()) + 1)
    neighbours = label_check.compare(features).neighbours
    return {*label_check.wrong_labels(neighbours, labels, probabilities)}


if __name__ == "__main__":
    main()
