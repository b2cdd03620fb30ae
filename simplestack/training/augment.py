"""Random crops and flips of a batch at once, on its device.

What is random is drawn for all photos of an epoch beforehand, from one generator, so that neither
threads nor processes have an influence on it.
"""

import math

import numpy as np
import torch
from torch import Tensor

from simplestack.serving import images

ASPECTS = (3 / 4, 4 / 3)  # of a crop, width by height
TRIES = 10  # at a crop that fits
SAMPLES = 2  # averaged for each pixel of a crop and axis: no aliasing


def generator(seed: int, epoch: int) -> torch.Generator:
    """Return the generator of an epoch's random numbers; a seed may have any size."""
    sequence = np.random.SeedSequence((seed % 2**64, epoch))
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def random_crops(aspects: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """Draw a crop for each of N photos, as torchvision's RandomResizedCrop, and a flip.

    `aspects` has the photos' widths by their heights; `smallest` is the smallest share of a photo's
    area. Return N×5: centre, width and height in shares of the photo, and -1 for a flip, else 1.
    """
    count = len(aspects)
    area, aspect = torch.rand(2, TRIES, count, generator=generator)
    x, y, flip = torch.rand(3, count, generator=generator)
    low, high = map(math.log, ASPECTS)
    stretch = (low + (high - low) * aspect).exp() / aspects
    area = smallest + (1 - smallest) * area
    widths, heights = (area * stretch).sqrt(), (area / stretch).sqrt()
    first = ((widths <= 1) & (heights <= 1)).int().argmax(0, keepdim=True)  # that fits
    width, height = (sides.gather(0, first)[0].clamp(max=1) for sides in (widths, heights))
    left, top = x * (1 - width), y * (1 - height)
    return torch.stack([left + width / 2, top + height / 2, width, height, 1 - 2 * flip.round()], 1)


def center_crops(aspects: Tensor) -> Tensor:
    """Return the middle of each photo, as it is served: N×5, as `random_crops`."""
    share = images.CROP / images.RESIZE
    half, one = torch.full_like(aspects, 0.5), torch.ones_like(aspects)
    width, height = share / aspects.clamp(min=1), share * aspects.clamp(max=1)
    return torch.stack([half, half, width, height, one], 1)


def crop(photos: Tensor, crops: Tensor, size: int) -> Tensor:
    """Cut the crops out of N×S×S×3 photos; return N×size×size×3 float32, 0 to 255.

    Resizing is bilinear, and a matrix product for each axis.
    """
    x, y, width, height, flip = crops.unbind(1)
    count, side = photos.shape[:2]
    rows = _resize_weights(y, height, size, side)
    columns = _resize_weights(x, width * flip, size, side)
    resized = torch.bmm(rows, photos.reshape(count, side, side * 3).float())
    channels_first = resized.view(count, size, side, 3).permute(0, 3, 1, 2)
    return (channels_first @ columns[:, None].mT).permute(0, 2, 3, 1)


def _resize_weights(centre: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """Return what each of `side` pixels contributes to each of `size`, N×size×side.

    `centre` and `length` of the N crops are shares of the side; a negative length turns them round.
    """
    count = SAMPLES * size
    positions = (torch.arange(count, device=centre.device) + 0.5) / count - 0.5
    pixels = torch.arange(side, device=centre.device) + 0.5
    at = side * (centre[:, None] + length[:, None] * positions)
    samples = (1 - (pixels - at[:, :, None]).abs()).clamp(min=0)
    weights = samples.view(len(centre), size, SAMPLES, side).sum(2)
    return weights / weights.sum(2, keepdim=True)
