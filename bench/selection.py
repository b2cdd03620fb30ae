"""Which weights to serve: by repeated cross-validation, each photo predicted without being seen.

    python -m bench.selection | tee bench/results/selection.txt

Compared are the linear probe, the last epoch, the epoch that was best on the photos held out, the
average of the linear probe's weights and the last epoch's (WiSE-FT, Wortsman et al. 2022), and an
exponential moving average over the steps of fine-tuning. "Best" is chosen by what it is judged by,
so its figure is what a report promises, and not what can be expected.
"""

import argparse
import copy
import math
import random
import statistics
from collections import defaultdict
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from bench import machine
from simplestack.training import dataset, folders
from simplestack.training.dataset import Photos
from simplestack.training.distributed import World
from simplestack.training.evaluate import predict
from simplestack.training.folders import Names
from simplestack.training.model import Classifier, pretrained
from simplestack.training.options import Options, merge
from simplestack.training.recipes import RECIPES
from train import build_optimizer, train_one_epoch

EMA_DECAY = 0.95  # per step: half of the weight lies on the last 14 steps
GB = 1e9


def correct(model: Classifier, photos: Photos, world: World) -> int:
    """Return how many photos are classified correctly."""
    _, logits = predict(model, photos, world, RECIPES["lp-ft"])
    return int((logits.argmax(1) == photos.labels).sum())


def averaged(a: Classifier, b: Classifier) -> Classifier:
    """Return a model whose weights are the means of two others'."""
    mean = copy.deepcopy(a)
    pairs = zip(mean.parameters(), b.parameters(), strict=True)
    with torch.no_grad():
        for parameter, other in pairs:
            parameter.lerp_(other, 0.5)
    return mean


def train(photos: Photos, held_out: Photos, options: Options) -> dict[str, int]:
    """Train as train.py does; return how many photos each candidate classifies correctly."""
    world, recipe = World(torch.device("cpu")), RECIPES["lp-ft"]
    model = pretrained(len(photos.classes)).to(memory_format=torch.channels_last)
    model.freeze(recipe.frozen_stages)
    model.fit_linear_probe(predict(model, photos, world, recipe)[0], photos.labels)
    probe = copy.deepcopy(model)
    optimizer, scaler = build_optimizer(model, recipe, recipe.lr), world.grad_scaler(True)
    steps = math.ceil(len(photos) / recipe.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: recipe.lr_scale(step / steps, recipe.epochs)
    )
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer.register_step_post_hook(lambda *_: ema.update_parameters(model))
    criterion = nn.CrossEntropyLoss(reduction="sum")
    epochs = [correct(probe, held_out, world)]
    for epoch in range(1, recipe.epochs + 1):
        train_one_epoch(
            *(model, criterion, optimizer, scheduler, scaler),
            *(photos, epoch, options, world, tqdm(disable=True)),
        )
        epochs.append(correct(model, held_out, world))
    return {
        "linear probe": epochs[0],
        "last epoch": epochs[-1],
        "best epoch": max(epochs),
        "WiSE-FT": correct(averaged(probe, model), held_out, world),
        "moving average": correct(cast(Classifier, ema.module), held_out, world),
    }


def folds_of(names: list[str], classes: list[str], count: int, seed: int) -> list[Names]:
    """Split the photos into folds, each with its share of each class."""
    shuffled = random.Random(seed).sample(names, len(names))  # noqa: S311  (nothing secret)
    shuffled.sort(key=lambda name: folders.class_of(name, classes))
    return [
        {
            "train": [name for i, name in enumerate(shuffled) if i % count != fold],
            "val": [name for i, name in enumerate(shuffled) if i % count == fold],
        }
        for fold in range(count)
    ]


def main() -> None:
    """Cross-validate again and again; print the accuracy of each candidate."""
    parser = argparse.ArgumentParser(description="Compare which weights to serve.")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: data)")
    parser.add_argument("--folds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: 3)")
    args = parser.parse_args()
    print(machine.describe(), flush=True)
    classes = folders.find_classes(args.data_dir)
    split = folders.find_photos(args.data_dir, classes, seed=0)
    names = [name for part in split.values() for name in part]
    accuracies: dict[str, list[float]] = defaultdict(list)
    for repeat in range(args.repeats):
        options = merge(argparse.Namespace(data_dir=args.data_dir, seed=repeat), {})
        total: dict[str, int] = defaultdict(int)
        for fold in folds_of(names, classes, args.folds, repeat):
            photos = dataset.open_photos(
                args.data_dir, fold, classes, budget=GB, device=torch.device("cpu")
            )
            for candidate, count in train(*photos, options).items():
                total[candidate] += count
        for candidate, count in total.items():
            accuracies[candidate].append(count / len(names))
        line = "  ".join(f"{name} {values[-1]:.4f}" for name, values in accuracies.items())
        print(line, flush=True)
    print(f"\n{args.repeats} times {args.folds}-fold, {len(names)} photos:")
    for candidate, values in accuracies.items():
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{candidate:15} {statistics.mean(values):.4f} ± {deviation:.4f}")


if __name__ == "__main__":
    main()
