"""Folders of photos: what is read, what is refused, and how it is said."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.training import data
from simplestack.training.recipe import RECIPES


@pytest.fixture
def folder(pictures, tmp_path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "data"))


def test_validation_photo_is_what_serving_sees(pictures):
    names = data.find_photos(pictures, ["ants", "bees"], 0)["val"]
    photos = data.Photos(pictures, names, ["ants", "bees"])
    photo, label = photos[4, None]
    assert label == 1
    assert np.array_equal(photo, images.read(photos.paths[4].read_bytes()))


def test_training_photo_is_augmented(pictures):
    names = data.find_photos(pictures, ["ants", "bees"], 0)["train"]
    augment = RECIPES["tutorial"].augmentation()
    photos = data.Photos(pictures, names, ["ants", "bees"], augment)
    first, other = photos[0, 1][0], photos[0, 2][0]
    assert first.shape == (224, 224, 3)
    assert not torch.equal(first, other)


def test_missing_folder_names_the_remedy(tmp_path):
    with pytest.raises(StackError, match=r"sh get_data\.sh"):
        data.find_classes(tmp_path / "data")


def test_single_class_is_refused(folder):
    shutil.rmtree(folder / "train" / "bees")
    with pytest.raises(StackError, match="at least two class folders"):
        data.find_classes(folder)


def test_classes_must_be_the_same_in_both_splits(folder):
    (folder / "val" / "wasps").mkdir()
    with pytest.raises(StackError, match="wasps is in one of them only"):
        data.find_classes(folder)


def test_any_class_names_do(folder):
    for split in ("train", "val"):
        (folder / split / "ants").rename(folder / split / "Ameisen & Käfer")
    assert data.find_classes(folder) == ["Ameisen & Käfer", "bees"]
