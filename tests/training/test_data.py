"""Folders of photos: what is read, what is rejected or skipped, and how it is said."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ODD_NAME, odd_names, split_folder, train_in_process, write_pictures
from PIL import Image

from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, data, engine
from simplestack.training.recipe import RECIPES

CPU = torch.device("cpu")
AUGMENT = RECIPES["lp-ft"].augmentation()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return split_folder(tmp_path / "photos")


def opened(folder: Path, budget: float = 1e9) -> tuple[data.Photos, data.Photos, str]:
    classes = data.find_classes(folder)
    names = data.find_photos(folder, classes, seed=0)
    train, val, warnings = data.open_photos(
        folder, names, classes, augment=AUGMENT, budget=budget, device=CPU
    )
    return train, val, "\n".join(warnings)


def test_class_folders_alone_are_split_class_by_class(tmp_path: Path) -> None:
    write_pictures(tmp_path, 10)
    write_pictures(tmp_path, 20, ("Bienen & Käfer",))
    classes = data.find_classes(tmp_path)
    names = data.find_photos(tmp_path, classes, seed=0)
    in_val = [sum(n.startswith(f"{name}/") for n in names["val"]) for name in classes]
    assert dict(zip(classes, in_val, strict=True)) == {"Bienen & Käfer": 4, "ants": 2, "bees": 2}


def test_no_photo_is_on_both_sides_of_the_split(tmp_path: Path) -> None:
    write_pictures(tmp_path, 10)
    names = data.find_photos(tmp_path, ["ants", "bees"], seed=0)
    assert sorted(names["train"] + names["val"]) == sorted(
        f"{name}/{i}.png" for name in ("ants", "bees") for i in range(10)
    )


def test_another_seed_splits_differently(tmp_path: Path) -> None:
    write_pictures(tmp_path, 10)
    splits = [data.find_photos(tmp_path, ["ants", "bees"], seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_a_class_with_a_single_photo_is_one_clear_line(tmp_path: Path) -> None:
    write_pictures(tmp_path, 5, ("ants",))
    write_pictures(tmp_path, 1, ("bees",))
    with pytest.raises(StackError, match=r"bees/0\.png is the only photo of its class"):
        data.find_photos(tmp_path, ["ants", "bees"], seed=0)


def test_the_split_is_recorded_and_kept_when_photos_are_added(tmp_path: Path) -> None:
    folder, path = tmp_path / "photos", tmp_path / "a.ckpt"
    write_pictures(folder, 5)
    before = train_in_process(path, "--data-dir", folder, "--freeze").photos
    write_pictures(folder, 8)
    train_in_process(path, "-c", path, "--epochs", 1)
    assert checkpoint.load(path).photos == before


def test_a_broken_photo_is_named_and_skipped(photos: Path) -> None:
    whole = (photos / "train" / "ants" / "0.png").read_bytes()
    (photos / "train" / "ants" / "half.png").write_bytes(whole[: len(whole) // 2])
    train, _, warnings = opened(photos)
    assert "half.png" in warnings
    assert "train/ants/half.png" not in train.names


def test_text_that_is_named_like_a_photo_is_skipped(photos: Path) -> None:
    (photos / "val" / "bees" / "notes.jpg").write_text("buy honey")
    assert "notes.jpg" in opened(photos)[2]


@pytest.mark.parametrize("size", [(1, 1), (20_000, 30), (9_000, 9_000)])
def test_a_picture_of_impossible_size_is_skipped(photos: Path, size: tuple[int, int]) -> None:
    Image.new("L", size).save(photos / "train" / "bees" / "odd.png")
    train, _, warnings = opened(photos)
    assert "odd.png" in warnings
    assert "train/bees/odd.png" not in train.names


@pytest.mark.parametrize("name", ["imageNotFound.gif", "notes.txt", "photo.jpgg"])
def test_a_file_not_named_like_a_photo_is_named(photos: Path, name: str) -> None:
    shutil.copy(photos / "train" / "ants" / "0.png", photos / "train" / "ants" / name)
    train, _, warnings = opened(photos)
    assert name in warnings
    assert f"train/ants/{name}" not in train.names


def test_good_photos_raise_no_warning(photos: Path) -> None:
    assert opened(photos)[2] == ""


def test_many_broken_photos_do_not_flood_the_screen(photos: Path) -> None:
    for i in range(30):
        (photos / "train" / "ants" / f"broken{i}.jpg").write_text("no photo")
    assert "30 photos skipped" in opened(photos)[2]
    assert opened(photos)[2].count("ants/broken") == data.MAX_NAMED


def test_a_training_photo_that_is_also_a_validation_photo_is_named(photos: Path) -> None:
    shutil.copy(photos / "train" / "ants" / "0.png", photos / "val" / "ants" / "copy.png")
    assert "copy.png" in opened(photos)[2]


def test_imbalanced_classes_are_reported(photos: Path) -> None:
    write_pictures(photos / "train", 30, ("bees",))
    assert "imbalanced classes (5 ants, 30 bees)" in opened(photos)[2]


def test_a_class_without_a_usable_photo_is_one_clear_line(photos: Path) -> None:
    for path in (photos / "val" / "ants").iterdir():
        path.write_text("no photo")
    with pytest.raises(StackError, match="none of the photos of ants"):
        opened(photos)


@odd_names
def test_a_class_folder_whose_name_is_no_text_is_one_clear_line(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2, ("bees", ODD_NAME))
    with pytest.raises(StackError, match="rename that folder"):
        data.find_classes(tmp_path)


def test_no_more_photos_are_kept_than_the_memory_allows(photos: Path) -> None:
    train, val, _ = opened(photos, budget=1e6)
    kept = [p.nbytes for p in (*train.decoded.values(), *val.decoded.values())]
    assert 0 < sum(kept) <= 1e6
    assert not train.cached


def test_a_photo_is_the_same_from_memory_and_from_a_worker_process(photos: Path) -> None:
    cached, uncached = opened(photos)[0], opened(photos, budget=0)[0]
    plan: list[list[data.View]] = [[(i, 7 * i) for i in range(len(cached))]]
    (pictures_read, _), (kept, _) = (
        next(engine.Engine(CPU).batches(part, plan)) for part in (uncached, cached)
    )
    assert torch.equal(pictures_read, kept)


def test_a_large_photo_is_kept_small(photos: Path) -> None:
    path = photos / "train" / "ants" / "large.jpg"
    Image.new("RGB", (6000, 4000)).save(path)
    train, _, _ = opened(photos)
    assert train.decoded[path].shape == (data.KEPT_SIDE, 768, 3)


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


def test_single_class_is_rejected(folder):
    shutil.rmtree(folder / "train" / "bees")
    with pytest.raises(StackError, match="at least two class folders"):
        data.find_classes(folder)


def test_classes_must_be_the_same_in_both_splits(folder):
    (folder / "val" / "wasps").mkdir()
    with pytest.raises(StackError, match="wasps is in one of them only"):
        data.find_classes(folder)


def test_any_class_names_are_accepted(folder):
    for split in ("train", "val"):
        (folder / split / "ants").rename(folder / split / "Ameisen & Käfer")
    assert data.find_classes(folder) == ["Ameisen & Käfer", "bees"]
