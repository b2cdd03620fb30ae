"""How to learn: the recipes of train.py, with their hyper-parameters."""

import math
from dataclasses import dataclass

import torch
from torchvision.transforms import v2

from simplestack.training.model import Classifier

MOMENTUM = 0.9
LR_STEP, LR_FACTOR = 7, 0.1  # of the tutorial: epochs between two steps of lr, and their factor


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum 0.9, and what is specific to the recipe."""

    epochs: int  # passes over the photos in which the whole network learns
    batch_size: int  # photos per step, of all processes together
    lr: float  # of the body
    head_lr: float  # times lr
    probe: bool  # fit the head on frozen features first, as epoch 0 (see Classifier.fit_head)
    frozen_statistics: bool  # batch norm keeps ImageNet's: those of a few photos are noise
    bfloat16: bool  # where the device has instructions for it
    cosine: bool  # decay of lr to 0 (Loshchilov & Hutter 2017); else steps
    crop: int  # pixels, the side of the square that it learns from; it is checked with 224
    smallest_crop: float  # share of a photo's area that a random crop shows at least

    def augmentation(self) -> v2.Transform:
        """Make the tutorial's augmentation: a random crop, resized, perhaps mirrored.

        Random crops show things larger than the middle of a photo does, so one may learn from
        smaller ones without a loss, and sooner (Touvron et al. 2019, "Fixing the train-test
        resolution discrepancy").
        """
        crop = v2.RandomResizedCrop(self.crop, scale=(self.smallest_crop, 1))
        return v2.Compose([crop, v2.RandomHorizontalFlip()])

    def learning_rate(self, lr: float, done: float, epochs: int) -> float:
        """Return the body's learning rate when `done` of so many epochs, also parts, are done."""
        if self.cosine:
            return lr * (1 + math.cos(math.pi * done / epochs)) / 2
        return lr * LR_FACTOR ** (int(done) // LR_STEP)

    def optimizer(self, network: Classifier, lr: float) -> torch.optim.SGD:
        """Build the optimizer; each group's `factor` times the learning rate is the group's own."""
        head = list(network.resnet.fc.parameters())
        body = [p for name, p in network.resnet.named_parameters() if not name.startswith("fc.")]
        groups = [{"params": body, "factor": 1.0}, {"params": head, "factor": self.head_lr}]
        return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM)


RECIPES = {
    "lp-ft": Recipe(
        epochs=8,
        batch_size=16,
        lr=0.0003,
        head_lr=3.0,
        probe=True,
        frozen_statistics=True,
        bfloat16=True,
        cosine=True,
        crop=176,
        smallest_crop=0.25,
    ),
    # https://pytorch.org/tutorials/beginner/transfer_learning_tutorial.html
    "tutorial": Recipe(
        epochs=25,
        batch_size=4,
        lr=0.001,
        head_lr=1.0,
        probe=False,
        frozen_statistics=False,
        bfloat16=False,
        cosine=False,
        crop=224,
        smallest_crop=0.08,
    ),
}
