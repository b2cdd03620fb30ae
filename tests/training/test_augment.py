"""Crops and flips of a batch: where they lie, how they look, and what they depend on."""

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from simplestack.training import augment


def drawn(seed=0, epoch=1, count=1000, smallest=0.25):
    generator = augment.generator(seed, epoch)
    return augment.random_crops(torch.full((count,), 4 / 3), smallest, generator)


def test_crops_lie_within_the_photo_and_half_of_them_are_flipped():
    x, y, width, height, flip = drawn().unbind(1)
    for centre, side in ((x, width), (y, height)):
        assert (centre - side / 2).min() >= -1e-6
        assert (centre + side / 2).max() <= 1 + 1e-6
    assert set(flip.tolist()) == {-1, 1}
    assert flip.mean() == pytest.approx(0, abs=0.1)


def test_crops_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    photo = torch.empty(3, 300, 400)
    transform = v2.RandomResizedCrop(8, scale=(0.25, 1))
    boxes = [transform.make_params([photo]) for _ in range(4000)]
    theirs = torch.tensor([[box["width"] / 400, box["height"] / 300] for box in boxes])
    ours = drawn(count=4000)[:, 2:4]
    for statistic in (torch.mean, torch.std):
        assert torch.allclose(statistic(ours, 0), statistic(theirs, 0), atol=0.02)


@pytest.mark.parametrize(("seed", "epoch"), [(1, 1), (0, 2), (-(10**30), 1)])
def test_another_seed_or_epoch_has_other_crops(seed, epoch):
    assert torch.equal(drawn(), drawn())
    assert not torch.equal(drawn(), drawn(seed, epoch))


def test_a_crop_has_nearly_torchvisions_pixels():
    photo = torch.rand(1, 3, 320, 320).mul(255).to(torch.uint8)
    photo = functional.gaussian_blur(photo, [31, 31])
    box = torch.tensor([[0.5, 0.4, 0.6, 0.5, -1]])
    ours = augment.crop(photo.permute(0, 2, 3, 1), box, 96).permute(0, 3, 1, 2)
    cut = photo[..., 48:208, 64:256].float().flip(-1)
    theirs = functional.resize(cut, [96, 96], antialias=True)
    assert (ours - theirs).abs().max() < 1


def test_center_crops_are_those_that_are_served():
    wide, tall = augment.center_crops(torch.tensor([2.0, 0.5]))
    assert wide.tolist() == [0.5, 0.5, 0.4375, 0.875, 1]
    assert tall.tolist() == [0.5, 0.5, 0.875, 0.4375, 1]
