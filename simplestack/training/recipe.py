"""The recipes of train.py and their hyper-parameters."""

import math
from dataclasses import dataclass

import torch
from torchvision.transforms import v2

from simplestack.training.model import Classifier

MOMENTUM = 0.9
STEP_SIZE, GAMMA = 7, 0.1  # of the tutorial's StepLR: epochs, and the lr scale after each step


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum; the hyper-parameters of lp-ft, unless others are given."""

    epochs: int = 8  # of fine-tuning the whole network
    batch_size: int = 16  # photos per step, over all processes
    lr: float = 0.0003  # of the body
    head_lr: float = 3.0  # lr scale of the head: times lr
    linear_probe: bool = True  # first, as epoch 0 (see Classifier.fit_linear_probe)
    frozen_statistics: bool = True  # batch norm keeps ImageNet's: those of a few photos are noise
    bfloat16: bool = True  # if the device has instructions for it
    cosine: bool = True  # decay of lr to 0 (Loshchilov & Hutter 2017), else steps
    crop: int = 176  # pixels, the side of the square to train on; validation is always on 224
    smallest_crop: float = 0.25  # smallest share of a photo's area in a random crop

    def augmentation(self) -> v2.Transform:
        """Return the tutorial's augmentation: a random crop, resized, and a random flip.

        Random crops show things larger than a central crop does, so training on fewer pixels
        costs no accuracy and is faster (Touvron et al. 2019, "Fixing the train-test resolution
        discrepancy").
        """
        crop = v2.RandomResizedCrop(self.crop, scale=(self.smallest_crop, 1))
        return v2.Compose([crop, v2.RandomHorizontalFlip()])

    def learning_rate(self, lr: float, done: float, epochs: int) -> float:
        """Return the body's learning rate after `done` of the epochs; fractions count."""
        if self.cosine:
            return lr * (1 + math.cos(math.pi * done / epochs)) / 2
        return lr * GAMMA ** (int(done) // STEP_SIZE)

    def optimizer(self, model: Classifier, lr: float) -> torch.optim.SGD:
        """Return the optimizer. The lr scale of each group is its `factor`, as in checkpoints."""
        head = list(model.resnet.fc.parameters())
        body = [p for name, p in model.resnet.named_parameters() if not name.startswith("fc.")]
        groups = [{"params": body, "factor": 1.0}, {"params": head, "factor": self.head_lr}]
        return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM)


RECIPES = {
    "lp-ft": Recipe(),
    # https://pytorch.org/tutorials/beginner/transfer_learning_tutorial.html
    "tutorial": Recipe(
        epochs=25,
        batch_size=4,
        lr=0.001,
        head_lr=1.0,
        linear_probe=False,
        frozen_statistics=False,
        bfloat16=False,
        cosine=False,
        crop=224,
        smallest_crop=0.08,
    ),
}
