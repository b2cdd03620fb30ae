"""Folders of photos: what is found, and what is rejected."""

import shutil
from pathlib import Path

import pytest
from helpers import ODD_NAME, odd_names, train_in_process, write_pictures

from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, folders


def test_class_folders_alone_are_split_class_by_class(tmp_path: Path) -> None:
    write_pictures(tmp_path, 10)
    write_pictures(tmp_path, 20, ("Bienen & Käfer",))
    classes = folders.find_classes(tmp_path)
    names = folders.find_photos(tmp_path, classes, seed=0)
    in_val = [sum(n.startswith(f"{name}/") for n in names["val"]) for name in classes]
    assert dict(zip(classes, in_val, strict=True)) == {"Bienen & Käfer": 4, "ants": 2, "bees": 2}


def test_no_photo_is_on_both_sides_of_the_split(tmp_path: Path) -> None:
    write_pictures(tmp_path, 10)
    names = folders.find_photos(tmp_path, ["ants", "bees"], seed=0)
    assert sorted(names["train"] + names["val"]) == sorted(
        f"{name}/{i}.png" for name in ("ants", "bees") for i in range(10)
    )


def test_another_seed_splits_differently(tmp_path: Path) -> None:
    write_pictures(tmp_path, 10)
    splits = [folders.find_photos(tmp_path, ["ants", "bees"], seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_a_class_with_a_single_photo_is_one_clear_line(tmp_path: Path) -> None:
    write_pictures(tmp_path, 5, ("ants",))
    write_pictures(tmp_path, 1, ("bees",))
    with pytest.raises(StackError, match=r"bees/0\.png is the only photo of its class"):
        folders.find_photos(tmp_path, ["ants", "bees"], seed=0)


@odd_names
def test_a_class_folder_whose_name_is_no_text_is_one_clear_line(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2, ("bees", ODD_NAME))
    with pytest.raises(StackError, match="rename that folder"):
        folders.find_classes(tmp_path)


def test_missing_folder_names_the_remedy(tmp_path):
    with pytest.raises(StackError, match=r"sh get_data\.sh"):
        folders.find_classes(tmp_path / "data")


def test_single_class_is_rejected(folder):
    shutil.rmtree(folder / "train" / "bees")
    with pytest.raises(StackError, match="at least two class folders"):
        folders.find_classes(folder)


def test_classes_must_be_the_same_in_both_splits(folder):
    (folder / "val" / "wasps").mkdir()
    with pytest.raises(StackError, match="wasps is in one of them only"):
        folders.find_classes(folder)


def test_any_class_names_are_accepted(folder):
    for split in ("train", "val"):
        (folder / split / "ants").rename(folder / split / "Ameisen & Käfer")
    assert folders.find_classes(folder) == ["Ameisen & Käfer", "bees"]


def test_the_split_is_recorded_and_kept_when_photos_are_added(tmp_path: Path) -> None:
    folder, path = tmp_path / "photos", tmp_path / "a.ckpt"
    write_pictures(folder, 5)
    before = train_in_process(path, "--data-dir", folder, "--freeze").photos
    write_pictures(folder, 8)
    train_in_process(path, "-c", path, "--epochs", 1)
    assert checkpoint.load(path).photos == before


@pytest.fixture
def folder(pictures, tmp_path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "data"))
