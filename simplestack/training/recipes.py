"""The recipes of train.py: their hyper-parameters."""

import math
from dataclasses import dataclass

MOMENTUM = 0.9
STEP_SIZE, GAMMA = 7, 0.1  # of the tutorial's StepLR: epochs, and the lr scale after each step


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum; the defaults are the hyper-parameters of lp-ft."""

    epochs: int = 4  # of fine-tuning
    batch_size: int = 16  # photos per step, over all processes
    lr: float = 0.0003  # of the body
    head_lr_scale: float = 3.0  # lr scale of the head: times lr
    linear_probe: bool = True  # first, as epoch 0 (train.py's fit_linear_probe)
    frozen_stages: int = 3  # of 5, stem included: edges and textures suit any photo
    frozen_statistics: bool = True  # batch norm keeps ImageNet's: those of a few photos are noise
    mixed_precision: bool = True  # if the device has instructions for it
    cosine: bool = True  # decay of lr to 0 (Loshchilov & Hutter 2017), else steps
    # Random crops show things larger than a central crop does, so training on fewer pixels costs no
    # accuracy (Touvron et al. 2019, "Fixing the train-test resolution discrepancy").
    crop: int = 176  # pixels, the side of the square to train on; validation is always on 224
    smallest_crop: float = 0.25  # smallest share of a photo's area in a random crop

    def lr_scale(self, done: float, epochs: int) -> float:
        """Return the factor of the learning rates after `done` epochs, which needn't be whole."""
        if self.cosine:
            return (1 + math.cos(math.pi * min(1, done / max(1, epochs)))) / 2
        return GAMMA ** (int(done) // STEP_SIZE)


RECIPES = {
    "lp-ft": Recipe(),
    # https://pytorch.org/tutorials/beginner/transfer_learning_tutorial.html
    "tutorial": Recipe(
        epochs=25,
        batch_size=4,
        lr=0.001,
        head_lr_scale=1.0,
        linear_probe=False,
        frozen_stages=0,
        frozen_statistics=False,
        mixed_precision=False,
        cosine=False,
        crop=224,
        smallest_crop=0.08,
    ),
}
