"""Compute a model's outputs for photos, without augmentation."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from simplestack.serving import images
from simplestack.training import augment
from simplestack.training.dataset import Photos
from simplestack.training.distributed import World
from simplestack.training.model import Classifier

BATCH = 32  # photos; has no influence on the result


def batch_indices(photos: Photos, world: World) -> list[Tensor]:
    """Return the indices of the photos that this process evaluates, batch by batch."""
    indices = world.share(torch.arange(len(photos), device=world.device))
    return [batch for batch in indices.split(BATCH) if len(batch)]


@torch.no_grad()
def frozen_outputs(model: Classifier, photos: Photos, world: World) -> Iterator[Tensor]:
    """Yield the frozen stages' outputs, n×C×H×W, for this process's photos, batch by batch.

    Training photos are cropped as if they were served.
    """
    model.eval()
    plan = batch_indices(photos, world)
    crops = augment.center_crops(photos.aspects).to(world.device)
    for indices, batch in zip(plan, photos.batches(plan, world.device), strict=True):
        if photos.whole:
            batch = augment.crop(batch, crops[indices], images.CROP)  # noqa: PLW2901
        with world.autocast():
            yield model.frozen(batch)


def cache_frozen_outputs(model: Classifier, photos: Photos, world: World) -> list[Tensor] | None:
    """Return the frozen stages' outputs; None if there are none, or if photos aren't in memory."""
    if not model.frozen_stages or photos.in_memory is None:
        return None
    return list(frozen_outputs(model, photos, world))


@torch.no_grad()
def evaluate(
    model: Classifier, photos: Photos, world: World, *, frozen: Iterable[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Return the inputs of the head, N×512, and the logits, N×C float32, of all photos, on the CPU.

    `frozen` has the outputs of the frozen stages, if they are cached. Every process computes its
    share and returns all.
    """
    model.eval()
    head = model.resnet.fc
    features = torch.zeros(len(photos), head.in_features, device=world.device)
    logits = torch.zeros(len(photos), head.out_features, device=world.device)
    batches = frozen_outputs(model, photos, world) if frozen is None else frozen
    plan = batch_indices(photos, world)
    bar = world.progress(zip(plan, batches, strict=True), "evaluating", len(plan))
    for indices, batch in bar:
        with world.autocast():
            inputs = model.features(batch)
            features[indices], logits[indices] = inputs.float(), head(inputs).float()
    return world.sum(features).cpu(), world.sum(logits).cpu()
