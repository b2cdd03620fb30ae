"""Random crops and flips of a batch at once, on its device.

All random numbers of an epoch are drawn in advance, from one generator, so that neither threads nor
processes can change them.
"""

import math

import numpy as np
import torch
from torch import Tensor

from simplestack.serving import images

ASPECTS = (3 / 4, 4 / 3)  # of a crop, width by height
TRIES = 10  # random crops for each photo: the first that fits is taken
SAMPLES = 2  # for each pixel of a crop, along each axis; their average avoids aliasing


def generator(seed: int, epoch: int) -> torch.Generator:
    """Return the generator of an epoch's random numbers; a seed may have any size."""
    sequence = np.random.SeedSequence((seed % 2**64, epoch))
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def random_crops(aspects: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """Draw a crop, as torchvision's RandomResizedCrop does, and a flip for each of N photos.

    `aspects`, N, are the photos' widths divided by their heights; `smallest` is the smallest crop's
    share of a photo's area. Return N×5 float32: the crop's centre x and y, width and height, as
    shares of the photo's sides, and -1 for a flip, else 1.
    """
    count = len(aspects)
    area, aspect = torch.rand(2, TRIES, count, generator=generator)
    x, y, flip = torch.rand(3, count, generator=generator)
    low, high = map(math.log, ASPECTS)
    stretch = (low + (high - low) * aspect).exp() / aspects
    area = smallest + (1 - smallest) * area
    widths, heights = (area * stretch).sqrt(), (area / stretch).sqrt()
    first = ((widths <= 1) & (heights <= 1)).int().argmax(0, keepdim=True)
    width, height = (sides.gather(0, first)[0].clamp(max=1) for sides in (widths, heights))
    left, top = x * (1 - width), y * (1 - height)
    return torch.stack([left + width / 2, top + height / 2, width, height, 1 - 2 * flip.round()], 1)


def center_crops(aspects: Tensor) -> Tensor:
    """Return each photo's central crop, as in serving: N×5, in the form of `random_crops`."""
    share = images.CROP / images.RESIZE
    half, one = torch.full_like(aspects, 0.5), torch.ones_like(aspects)
    width, height = share / aspects.clamp(min=1), share * aspects.clamp(max=1)
    return torch.stack([half, half, width, height, one], 1)


def crop(photos: Tensor, crops: Tensor, size: int) -> Tensor:
    """Cut the crops out of N×S×S×3 photos; return N×size×size×3 float32, 0 to 255.

    Resizing is bilinear: one matrix product for each axis.
    """
    x, y, width, height, flip = crops.unbind(1)
    count, side = photos.shape[:2]
    rows = _resize_weights(y, height, size, side)
    columns = _resize_weights(x, width * flip, size, side)
    resized = torch.bmm(rows, photos.reshape(count, side, side * 3).float())
    channels_first = resized.view(count, size, side, 3).permute(0, 3, 1, 2)
    return (channels_first @ columns[:, None].mT).permute(0, 2, 3, 1)


def _resize_weights(centre: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """Return the weight of each of `side` pixels in each of `size`, N×size×side.

    `centre` and `length`, N, are shares of the side; a negative length mirrors the crop.
    """
    count = SAMPLES * size
    positions = (torch.arange(count, device=centre.device) + 0.5) / count - 0.5
    pixels = torch.arange(side, device=centre.device) + 0.5
    at = side * (centre[:, None] + length[:, None] * positions)
    samples = (1 - (pixels - at[:, :, None]).abs()).clamp(min=0)
    weights = samples.view(len(centre), size, SAMPLES, side).sum(2)
    return weights / weights.sum(2, keepdim=True)
