"""Folders of photos: what is found, and what is rejected."""

import shutil
from pathlib import Path

import pytest
from helpers import ODD_NAME, odd_names, write_pictures

from simplestack.serving.errors import StackError
from simplestack.training import folders


def test_class_folders_alone_are_split_class_by_class(tmp_path: Path) -> None:
    write_pictures(tmp_path, 60)
    write_pictures(tmp_path, 120, ("Bienen & Käfer",))
    classes = folders.find_classes(tmp_path)
    assert classes == ["Bienen & Käfer", "ants", "bees"]
    names = folders.find_photos(tmp_path, classes, seed=0)
    for class_name, share in zip(classes, (120, 60, 60), strict=True):
        held_out = sum(name.startswith(f"{class_name}/") for name in names["val"])
        assert 0.1 < held_out / share < 0.3


@pytest.mark.parametrize(
    ("hashes", "in_val"),
    [
        ([0.1, 0.5, 0.9, 0.19], "ad"),
        ([0.5, 0.3, 0.9, 0.4], "b"),  # none is below a fifth
        ([0.1, 0.15, 0.05, 0.12], "acd"),  # all are
    ],
)
def test_validation_photos_are_those_with_a_small_hash(hashes, in_val):
    names = folders.hold_out(list("abcd"), dict(zip("abcd", hashes, strict=True)))
    assert ["".join(part) for part in names] == ["".join(sorted(set("abcd") - set(in_val))), in_val]


def test_photos_that_are_added_move_none_from_training_to_validation(tmp_path: Path) -> None:
    write_pictures(tmp_path, 40)
    before = folders.find_photos(tmp_path, ["ants", "bees"], seed=3)
    write_pictures(tmp_path, 80)
    after = folders.find_photos(tmp_path, ["ants", "bees"], seed=3)
    assert set(before["train"]) < set(after["train"])
    assert set(before["val"]) < set(after["val"])


def test_copies_of_a_photo_are_on_one_side(tmp_path: Path) -> None:
    write_pictures(tmp_path, 30)
    for path in list(tmp_path.glob("*/*.png")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    names = folders.find_photos(tmp_path, ["ants", "bees"], seed=0)
    contents = [{(tmp_path / name).read_bytes() for name in names[split]} for split in names]
    assert not set.intersection(*contents)


def test_what_has_changed_is_said(tmp_path: Path) -> None:
    write_pictures(tmp_path, 5, ("Biene", "Wespe"))
    classes = folders.find_classes(tmp_path)
    names = folders.find_photos(tmp_path, classes, seed=0)
    recorded = folders.sizes(tmp_path, names["train"] + names["val"])
    assert folders.changes(tmp_path, classes, recorded) == ""
    write_pictures(tmp_path, 19, ("Hummel",))
    (tmp_path / "Biene" / "0.png").unlink()
    assert folders.changes(tmp_path, classes, recorded) == "19 new photos, 1 gone, new class Hummel"
    shutil.rmtree(tmp_path / "Hummel")
    shutil.rmtree(tmp_path / "Biene")
    write_pictures(tmp_path, 1, ("Fliege",))
    with (tmp_path / "Wespe" / "1.png").open("ab") as file:
        file.write(b"\0")
    said = "1 new photo, 5 gone, 1 edited, new class Fliege, class Biene gone"
    assert folders.changes(tmp_path, classes, recorded) == said


def test_any_labelled_folder_can_be_evaluated_on(folder):
    classes = ["ants", "bees", "wasps"]
    assert len(folders.find_labelled(folder, classes)) == 6  # those for validation
    assert len(folders.find_labelled(folder / "train", classes)) == 12
    with pytest.raises(StackError, match=r"no class of the checkpoint \(ants, wasps\): bees"):
        folders.find_labelled(folder, ["ants", "wasps"])
    with pytest.raises(StackError, match="no photos in it"):
        folders.find_labelled(folder / "train" / "ants", classes)


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


def test_folders_below_a_class_belong_to_it(tmp_path: Path) -> None:
    write_pictures(tmp_path, 4)
    (tmp_path / "ants" / "day 1" / "bees").mkdir(parents=True)
    (tmp_path / "ants" / "0.png").rename(tmp_path / "ants" / "day 1" / "bees" / "x.png")
    names = folders.find_photos(tmp_path, ["ants", "bees"], seed=0)
    found = names["train"] + names["val"]
    assert "ants/day 1/bees/x.png" in found
    assert [folders.class_of(name, ["ants", "bees"]) for name in found].count("ants") == 4


@pytest.mark.parametrize(("train", "val"), [("Train", "Valid"), ("training", "TEST")])
def test_folders_for_training_and_validation_have_several_names(folder, train, val):
    (folder / "train").rename(folder / train)
    (folder / "val").rename(folder / val)
    classes = folders.find_classes(folder)
    names = folders.find_photos(folder, classes, seed=0)
    assert classes == ["ants", "bees"]
    assert {folders.class_of(name, classes) for name in names["val"]} == {"ants", "bees"}
    assert all(name.startswith(f"{val}/") for name in names["val"])


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_pictures(tmp_path, 4, ("train", "tram"))
    assert folders.find_classes(tmp_path) == ["train", "tram"]
    names = folders.find_photos(tmp_path, ["train", "tram"], seed=0)
    assert len(names["train"]) == 6


def test_a_class_cannot_be_called_train_within_train(folder):
    for split in ("train", "val"):
        (folder / split / "ants").rename(folder / split / "train")
    with pytest.raises(StackError, match="can't be called train"):
        folders.find_classes(folder)


def test_what_systems_leave_is_ignored(folder):
    for split in ("train", "val"):
        for name in ("__MACOSX", ".ipynb_checkpoints"):
            shutil.copytree(folder / split / "ants", folder / split / name)
        for name in ("._00.jpg", "Thumbs.db", ".DS_Store"):
            (folder / split / "ants" / name).write_bytes(b"")
    assert folders.find_classes(folder) == ["ants", "bees"]
    assert folders.unexpected_files(folder) == []


def test_names_are_compared_in_one_form_of_unicode(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", 2, ("ants", "ka\u0308fer"))
    write_pictures(tmp_path / "val", 2, ("ants", "k\u00e4fer"))
    classes = folders.find_classes(tmp_path)
    assert classes == ["ants", "k\u00e4fer"]
    names = folders.find_photos(tmp_path, classes, seed=0)
    assert {folders.class_of(name, classes) for name in names["train"]} == set(classes)


def test_a_link_that_leads_nowhere_is_named(folder):
    (folder / "train" / "ants" / "gone.jpg").symlink_to("/nowhere.jpg")
    (found,) = folders.unexpected_files(folder)
    assert found.endswith("gone.jpg, a link that leads nowhere")


def test_a_folder_without_photos_says_what_is_in_it(folder):
    for path in (folder / "train" / "bees").iterdir():
        path.rename(path.with_suffix(".raw"))
    with pytest.raises(StackError, match=r"train/bees has no photos in it, only 6 \.raw"):
        folders.find_photos(folder, ["ants", "bees"], seed=0)


@pytest.fixture
def folder(pictures, tmp_path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "data"))
