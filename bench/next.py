"""Compare ways to choose the next photos to label: accuracy against the number of labels.

    python train.py --freeze --data-dir FOLDER --output saved_models/NAME.ckpt
    python -m bench.next saved_models/NAME.ckpt 10

A linear probe on the checkpoint's features is fitted to a few training photos, here 10. Each round
labels twelve more. All ways start with the same photos, which ten seeds draw, at least one of each
class.
The difference between two ways is that of their mean accuracies on the validation photos over the
rounds, seed by seed, with a 95 % interval of Student's t distribution.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import machine
from simplestack import active_learning
from simplestack.training import checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.model import fit_head

Way = Callable[[Any, Any, int], Any]
SEEDS, ROUNDS, STEP = 10, 10, 12
START = int(sys.argv[2])  # photos
T = 2.262  # 97.5 % of Student's t distribution with 9 degrees of freedom
WAYS: dict[str, Way] = {
    "random": lambda p, _, count: np.random.default_rng(len(p)).permutation(len(p))[:count],
    "least confidence": lambda p, _, count: p.max(1).argsort()[:count],
    "smallest margin": lambda p, _, count: np.diff(np.sort(p)[:, -2:])[:, 0].argsort()[:count],
    "predict.py --next": active_learning.choose,
}


def curve(state: checkpoint.Checkpoint, labels: Any, way: Way, seed: int) -> list[float]:
    """Return the validation accuracy with the first photos and after each round."""
    count, classes = len(state.photos["train"]), len(state.classes)
    order = np.random.default_rng(seed).permutation(count)
    firsts = [next(i for i in order if labels[i] == c) for c in range(classes)]
    known = (firsts + [i for i in order if i not in firsts])[:START]
    accuracies = []
    while True:
        head = fit_head(state.features[known], labels[known], classes)
        with torch.inference_mode():
            p = head(state.features).softmax(1).numpy()
        accuracies.append((p[count:].argmax(1) == labels[count:].numpy()).mean())
        if len(accuracies) > ROUNDS:
            return accuracies
        rest = np.setdiff1d(order[:count], known)
        features = torch.nn.functional.normalize(state.features[rest]).numpy()
        known += rest[way(p[rest], features, STEP)].tolist()


if __name__ == "__main__":
    state = checkpoint.load(Path(sys.argv[1]))
    names = state.photos["train"] + state.photos["val"]
    photos = Photos(Path(state.arguments["data_dir"]), names, state.classes, whole=False)
    curves = {}
    print(machine.describe())
    for name, way in WAYS.items():
        one = partial(curve, state, photos.labels, way)
        curves[name] = np.array([one(seed) for seed in range(SEEDS)])
        print(f"{name:18}", *(f"{x:.3f}" for x in curves[name].mean(0)), flush=True)
    for name in list(WAYS)[:-1]:
        difference = (curves["predict.py --next"] - curves[name])[:, 1:].mean(1)
        half = T * difference.std(ddof=1) / SEEDS**0.5
        low, high = difference.mean() - half, difference.mean() + half
        print(f"--next minus {name}: {difference.mean():+.4f} ({low:+.4f} to {high:+.4f})")
