"""Evaluate a model on photos."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from simplestack.report import report
from simplestack.serving import images
from simplestack.training import augment, dataset, folders
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.distributed import World
from simplestack.training.model import Classifier
from simplestack.training.options import Options
from simplestack.training.recipes import RECIPES, Recipe

BATCH = 32  # photos; has no influence on the result


def shares(photos: Photos, world: World) -> list[Tensor]:
    """Return the indices of the photos that this process evaluates, batch by batch."""
    indices = world.share(torch.arange(len(photos), device=world.device))
    return [batch for batch in indices.split(BATCH) if len(batch)]


@torch.no_grad()
def frozen_outputs(
    model: Classifier, photos: Photos, world: World, recipe: Recipe
) -> Iterator[Tensor]:
    """Yield what the frozen stages make of this process's share of the photos, batch by batch.

    Training photos are cropped as if they were served.
    """
    model.eval()
    plan = shares(photos, world)
    crops = augment.center_crops(photos.aspects).to(world.device)
    for indices, batch in zip(plan, photos.batches(plan, world.device), strict=True):
        if photos.whole:
            batch = augment.crop(batch, crops[indices], images.CROP)  # noqa: PLW2901
        with world.autocast(recipe.mixed_precision):
            yield model.frozen(batch)


@torch.no_grad()
def predict(
    model: Classifier,
    photos: Photos,
    world: World,
    recipe: Recipe,
    *,
    frozen: Iterable[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the inputs of the head, N×512, and the logits, N×C, of all photos, on the CPU.

    `frozen` has the outputs of the frozen stages if they are known. Every process computes its
    share and gets all of them.
    """
    model.eval()
    head = model.resnet.fc
    features = torch.zeros(len(photos), head.in_features, device=world.device)
    logits = torch.zeros(len(photos), head.out_features, device=world.device)
    batches = frozen_outputs(model, photos, world, recipe) if frozen is None else frozen
    for indices, batch in zip(shares(photos, world), batches, strict=True):
        with world.autocast(recipe.mixed_precision):
            inputs = model.features(batch)
            features[indices], logits[indices] = inputs.float(), head(inputs).float()
    return world.sum(features).cpu(), world.sum(logits).cpu()


def load_best(checkpoint: Checkpoint, world: World) -> Classifier:
    """Return the model of the best epoch."""
    model = Classifier(len(checkpoint.classes))
    model.load_state_dict(checkpoint.best)
    return model.to(memory_format=torch.channels_last).to(world.device).eval()


def evaluate(options: Options, state: Checkpoint) -> None:
    """Measure the best epoch of a checkpoint, on its validation photos or in another folder."""
    names, validation = state.photos["val"], True
    if options.data_dir.resolve() != Path(state.arguments["data_dir"]).resolve():
        names, validation = folders.find_labelled(options.data_dir, state.classes), False
    world = World.start(options.device)
    photos = dataset.open_labelled(options.data_dir, names, state.classes, device=world.device)
    best = load_best(state, world)
    _, logits = predict(best, photos, world, RECIPES[options.recipe])
    world.stop()
    if world.rank == 0:
        for line in photos.broken if validation else ():  # else they are in the report
            print(f"warning: skipped {line}", file=sys.stderr)
        given = (options.output, state, best, photos, logits)
        print(report.report_evaluation(*given, validation=validation))
