"""Evaluate a model on photos."""

from typing import Any

import torch
from torch import Tensor

from simplestack.serving import images
from simplestack.training import augment
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.distributed import World
from simplestack.training.metrics import compute_metrics, loss_and_accuracy
from simplestack.training.model import Classifier
from simplestack.training.recipes import RECIPES, Recipe

BATCH = 32  # photos; has no influence on the result


@torch.no_grad()
def predict(
    model: Classifier, photos: Photos, world: World, recipe: Recipe, *, features: bool = False
) -> Tensor:
    """Return the logits, N×C, or the inputs of the head, N×512, of all photos: float32, on the CPU.

    Training photos are cropped as if they were served. Every process computes its share and gets
    all of them.
    """
    model.eval()
    head, forward = model.resnet.fc, model.features if features else model
    width = head.in_features if features else head.out_features
    outputs = torch.zeros(len(photos), width, device=world.device)
    plan = [x for x in world.share(torch.arange(len(photos))).split(BATCH) if len(x)]
    crops = augment.center_crops(photos.aspects).to(world.device)
    for indices, batch in zip(plan, photos.batches(plan, world.device), strict=True):
        if photos.whole:
            batch = augment.crop(batch, crops[indices], images.CROP)  # noqa: PLW2901
        with world.autocast(recipe.mixed_precision):
            outputs[indices] = forward(batch).float()
    return world.sum(outputs).cpu()


def evaluate(
    model: Classifier, photos: Photos, world: World, recipe: Recipe
) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    return loss_and_accuracy(predict(model, photos, world, recipe), photos.labels)


def evaluate_best(
    checkpoint: Checkpoint, val: Photos, world: World
) -> tuple[Classifier, dict[str, Any], Tensor]:
    """Return the model of the best epoch, its metrics and the N×C probabilities."""
    model = Classifier(len(checkpoint.classes))
    model.load_state_dict(checkpoint.best)
    model.to(memory_format=torch.channels_last).to(world.device)
    recipe = RECIPES[checkpoint.arguments["recipe"]]
    probabilities = predict(model, val, world, recipe).softmax(1)
    return model, compute_metrics(probabilities, val.labels, checkpoint.classes), probabilities
