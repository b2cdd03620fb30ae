"""Folders of photos as PyTorch data sets: data/{train,val}/{one folder per class}."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from simplestack import StackError, images, sample

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff"}


augment = v2.Compose([v2.RandomResizedCrop(images.CROP), v2.RandomHorizontalFlip()])
"""The tutorial's augmentation of a training photo, from PIL to PIL image."""


class Photos(Dataset[tuple[Tensor, int]]):
    """Photos and their labels: 224×224×3 uint8 tensors, and indices into `classes`."""

    def __init__(self, folder: Path, classes: list[str], *, training: bool) -> None:
        """List the photos of every class. Raises StackError where a class has none."""
        self.paths: list[Path] = []
        self.labels: list[int] = []
        self.training = training
        for label, name in enumerate(classes):
            paths = photos_in(folder / name)
            if not paths:
                raise StackError(
                    f"{folder / name} has no photos in it: put some there"
                    f" ({', '.join(sorted(SUFFIXES))}), or remove the class from every split"
                )
            self.paths += paths
            self.labels += [label] * len(paths)

    def __len__(self) -> int:
        """Count the photos."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read a photo; in training a random part of it, perhaps mirrored."""
        path = self.paths[index]
        try:
            image = images.identify(path.read_bytes())
            seen = augment(images.decode(image)) if self.training else images.to_array(image)
        except (StackError, OSError) as error:
            raise StackError(f"can't use {path}, replace or remove it: {error}") from error
        return torch.from_numpy(np.array(seen)), self.labels[index]


def photos_in(folder: Path) -> list[Path]:
    """List the photos of one class, sorted by name so that a seed means the same everywhere."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())


def find_classes(data_dir: Path) -> list[str]:
    """Name the classes: the folders in data_dir/train, sorted. Raises StackError."""
    for split in ("train", "val"):
        if not (data_dir / split).is_dir():
            raise StackError(
                f"there are no photos in {data_dir / split}: run `sh get_data.sh` first, or name"
                " another folder with --data-dir (it needs train/ and val/, with one folder per"
                " class in each)"
            )
    classes, val = (
        sorted(p.name for p in (data_dir / s).iterdir() if p.is_dir() and p.name[0] != ".")
        for s in ("train", "val")
    )
    if len(classes) < 2:  # noqa: PLR2004
        raise StackError(f"{data_dir / 'train'} needs at least two class folders, has {classes}")
    if classes != val:
        raise StackError(
            f"{data_dir}/train and {data_dir}/val must have the same class folders:"
            f" {', '.join(sorted(set(classes) ^ set(val)))} is in one of them only"
        )
    return classes


def is_sample(data_dir: Path) -> bool:
    """Tell generated pictures (`sh get_data.sh --sample`) from photos."""
    return (data_dir / sample.NOTE).exists()
