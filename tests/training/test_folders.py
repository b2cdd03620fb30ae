"""Folders of photos: what is found, and what is rejected. None is opened, so any files will do."""

import os
import re
import shutil
from pathlib import Path

import pytest
from helpers import ODD_NAME, odd_names

from simplestack.serving.errors import StackError
from simplestack.training import folders, sample

CLASSES = ["ants", "bees"]


def write(folder: Path, *names: str) -> Path:
    """Write files below a folder, each with a content of its own."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(name))
    return folder


def numbered(count: int, *classes: str) -> list[str]:
    """Return the names of so many photos of each class."""
    return [f"{name}/{i}.png" for name in classes for i in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos of each class for training, and two for validation."""
    write(tmp_path / "train", *numbered(3, *CLASSES))
    write(tmp_path / "val", *numbered(2, *CLASSES))
    return tmp_path


def test_photos_for_training_and_validation_are_those_in_their_folders(folder):
    assert folders.find_classes(folder) == CLASSES
    assert folders.find_photos(folder, CLASSES, seed=0) == {
        "train": [f"train/{name}" for name in numbered(3, *CLASSES)],
        "val": [f"val/{name}" for name in numbered(2, *CLASSES)],
    }


def test_class_folders_alone_are_split_class_by_class(tmp_path):
    write(tmp_path, *numbered(60, *CLASSES), *numbered(120, "Bienen & Käfer"))
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
        ([0.2, 0.5, 0.9, 0.19], "d"),  # a fifth is not below a fifth
        ([0.5, 0.3, 0.9, 0.4], "b"),  # none is below
        ([0.1, 0.15, 0.05, 0.12], "acd"),  # all are
        ([0.1, 0.5], "a"),
    ],
)
def test_validation_photos_are_those_with_a_small_hash(hashes, in_val):
    names = "abcd"[: len(hashes)]
    parts = folders.hold_out(list(names), dict(zip(names, hashes, strict=True)))
    assert ["".join(part) for part in parts] == ["".join(sorted(set(names) - set(in_val))), in_val]


def test_hashes_are_spread_evenly_between_0_and_1(tmp_path):
    names = numbered(200, "ants")
    hashes = sorted(folders.hash_photos(write(tmp_path, *names), names, seed=0).values())
    assert 0 <= hashes[0] < 0.1
    assert 0.4 < hashes[100] < 0.6
    assert 0.9 < hashes[-1] < 1


def test_a_photo_that_cannot_be_read_is_for_training(tmp_path):
    assert folders.hash_photos(tmp_path, ["gone.jpg"], seed=0) == {"gone.jpg": 1}


def test_photos_that_are_added_move_none_from_training_to_validation(tmp_path):
    write(tmp_path, *numbered(40, *CLASSES))
    before = folders.find_photos(tmp_path, CLASSES, seed=3)
    write(tmp_path, *numbered(80, *CLASSES))
    after = folders.find_photos(tmp_path, CLASSES, seed=3)
    assert set(before["train"]) < set(after["train"])
    assert set(before["val"]) < set(after["val"])


def test_copies_of_a_photo_are_on_one_side(tmp_path):
    write(tmp_path, *numbered(30, *CLASSES))
    for path in list(tmp_path.glob("*/*.png")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    names = folders.find_photos(tmp_path, CLASSES, seed=0)
    contents = [{(tmp_path / name).read_bytes() for name in names[split]} for split in names]
    assert not set.intersection(*contents)


def test_no_photo_is_on_both_sides_of_the_split(tmp_path):
    write(tmp_path, *numbered(10, *CLASSES))
    names = folders.find_photos(tmp_path, CLASSES, seed=0)
    assert sorted(names["train"] + names["val"]) == numbered(10, *CLASSES)


def test_another_seed_splits_differently(tmp_path):
    write(tmp_path, *numbered(10, *CLASSES))
    splits = [folders.find_photos(tmp_path, CLASSES, seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_a_class_with_a_single_photo_is_one_clear_line(tmp_path):
    write(tmp_path, *numbered(5, "ants"), *numbered(1, "bees"))
    with pytest.raises(StackError, match=r"bees/0\.png is the only photo of its class"):
        folders.find_photos(tmp_path, CLASSES, seed=0)


def test_what_has_changed_is_said(tmp_path):
    write(tmp_path, *numbered(5, "Biene", "Wespe"))
    classes = folders.find_classes(tmp_path)
    names = folders.find_photos(tmp_path, classes, seed=0)
    recorded = folders.sizes(tmp_path, names["train"] + names["val"])
    assert set(recorded.values()) == {len("Biene/0.png")}
    assert folders.changes(tmp_path, classes, recorded) == ""
    write(tmp_path, *numbered(19, "Hummel"))
    (tmp_path / "Biene" / "0.png").unlink()
    assert folders.changes(tmp_path, classes, recorded) == "19 new photos, 1 gone, new class Hummel"
    shutil.rmtree(tmp_path / "Hummel")
    shutil.rmtree(tmp_path / "Biene")
    write(tmp_path, *numbered(1, "Fliege"))
    (tmp_path / "Wespe" / "1.png").write_text("another one")
    (tmp_path / "Wespe" / "2.png").write_text("another size")
    said = "1 new photo, 5 gone, 1 edited, new class Fliege, class Biene gone"
    assert folders.changes(tmp_path, classes, recorded) == said


def test_any_labelled_folder_can_be_evaluated_on(folder):
    classes = ["ants", "bees", "wasps"]
    held_out = [f"val/{name}" for name in numbered(2, *CLASSES)]
    assert folders.find_labelled(folder, classes) == held_out
    assert folders.find_labelled(folder / "train", classes) == numbered(3, *CLASSES)
    shutil.rmtree(folder / "train" / "bees")
    assert folders.find_labelled(folder / "train", CLASSES) == numbered(3, "ants")
    with pytest.raises(StackError, match="there are no photos in"):
        folders.find_labelled(folder / "nowhere", classes)
    with pytest.raises(StackError, match=r"ants has no photos in it: name another folder"):
        folders.find_labelled(folder / "train" / "ants", classes)


def test_photos_of_other_classes_are_not_evaluated_on(folder):
    write(folder / "val", *numbered(1, *(f"c{i:02}" for i in range(12))))
    said = r"no class of the checkpoint \(ants, wasps\): bees, c00, .*, c08\. Move them away"
    with pytest.raises(StackError, match=said):
        folders.find_labelled(folder, ["ants", "wasps"])


@odd_names
def test_a_class_folder_whose_name_is_no_text_is_one_clear_line(tmp_path):
    write(tmp_path, *numbered(2, "bees", ODD_NAME))
    with pytest.raises(StackError, match="rename that folder"):
        folders.find_classes(tmp_path)


def test_missing_folder_names_the_remedy(tmp_path):
    with pytest.raises(StackError, match=r"there are no photos in /.*/data: run `sh get_data\.sh`"):
        folders.find_classes(tmp_path / "data")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("left", "has"), [(["ants"], "ants"), ([], "none")])
def test_fewer_than_two_classes_are_rejected(folder, split, left, has):
    for name in set(CLASSES) - set(left):
        shutil.rmtree(folder / split / name)
    said = f"{folder / split} needs at least two class folders, has {has}: run `sh get_data.sh`"
    with pytest.raises(StackError, match=re.escape(said)):
        folders.find_classes(folder)


@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_must_be_the_same_in_both_splits(folder, split):
    (folder / split / "wasps").mkdir()
    said = f"{folder / 'train'} and {folder / 'val'} must have the same class folders: wasps is in"
    with pytest.raises(StackError, match=re.escape(said)):
        folders.find_classes(folder)


def test_any_class_names_are_accepted(folder):
    for split in ("train", "val"):
        (folder / split / "ants").rename(folder / split / "Ameisen & Käfer")
    assert folders.find_classes(folder) == ["Ameisen & Käfer", "bees"]


def test_folders_below_a_class_belong_to_it(tmp_path):
    write(tmp_path, *numbered(3, *CLASSES), "ants/day 1/bees/x.png")
    names = folders.find_photos(tmp_path, CLASSES, seed=0)
    found = names["train"] + names["val"]
    assert "ants/day 1/bees/x.png" in found
    assert [folders.class_of(name, CLASSES) for name in found].count("ants") == 4


@pytest.mark.parametrize(
    ("name", "found"), [("val/bees/0.png", "bees"), ("0.png", ""), ("val/day 1/bees/0.png", "")]
)
def test_the_class_of_a_photo_is_its_folder(name, found):
    assert folders.class_of(name, CLASSES) == found


@pytest.mark.parametrize(
    ("train", "val"),
    [
        *(("Train", "Valid"), ("training", "TEST"), ("train", "validation")),
        *(("Training", "val"), ("train", "test")),
    ],
)
def test_folders_for_training_and_validation_have_several_names(folder, train, val):
    (folder / "train").rename(folder / train)
    (folder / "val").rename(folder / val)
    classes = folders.find_classes(folder)
    names = folders.find_photos(folder, classes, seed=0)
    assert classes == CLASSES
    assert {folders.class_of(name, classes) for name in names["val"]} == set(CLASSES)
    assert all(name.startswith(f"{train}/") for name in names["train"])
    assert all(name.startswith(f"{val}/") for name in names["val"])


def test_a_folder_for_training_alone_needs_one_for_validation(folder):
    shutil.rmtree(folder / "val")
    with pytest.raises(StackError, match=r"there are no photos in .*/val"):
        folders.find_classes(folder)


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, *numbered(4, "train", "tram"))
    assert folders.find_classes(tmp_path) == ["train", "tram"]
    names = folders.find_photos(tmp_path, ["train", "tram"], seed=0)
    assert len(names["train"]) == 6


def test_a_class_cannot_be_called_train_within_train(folder):
    for split in ("train", "val"):
        (folder / split / "ants").rename(folder / split / "train")
    with pytest.raises(StackError, match="can't be called train"):
        folders.find_classes(folder)


def test_photos_are_files_named_like_photos_in_order(tmp_path):
    there = [
        *("a.avif", "b.bmp", "c.heic", "d.heif", "e.jfif", "f.jpeg", "g.jpg", "h.JPG", "i.pgm"),
        *("j.png", "k.ppm", "l.tif", "m.tiff", "n.webp"),
    ]
    write(tmp_path, *reversed(there), "a.gif", "b.txt", "jpg")
    (tmp_path / "o.jpg").mkdir()
    assert [path.name for path in folders.photos_in([tmp_path])] == there


def test_what_systems_leave_is_ignored(folder):
    for split in ("train", "val"):
        for name in ("__MACOSX", ".ipynb_checkpoints", "ants/.cache"):
            write(folder / split / name, "0.png")
        write(folder / split / "ants", "._00.jpg", "Thumbs.db", ".DS_Store", "desktop.ini")
    assert folders.find_classes(folder) == CLASSES
    assert folders.unexpected_files(folder) == []
    assert len(folders.find_photos(folder, CLASSES, seed=0)["train"]) == 6


def test_names_are_compared_in_one_form_of_unicode(tmp_path):
    write(tmp_path / "train", *numbered(2, "ants", "ka\u0308fer"))
    write(tmp_path / "val", *numbered(2, "ants", "k\u00e4fer"))
    classes = folders.find_classes(tmp_path)
    assert classes == ["ants", "k\u00e4fer"]
    names = folders.find_photos(tmp_path, classes, seed=0)
    assert {folders.class_of(name, classes) for name in names["train"]} == set(classes)


@pytest.mark.skipif("sys.platform == 'darwin'", reason="macOS takes both for one folder")
def test_both_forms_of_a_name_are_one_class(tmp_path):
    write(tmp_path, *numbered(2, "ants", "ka\u0308fer", "k\u00e4fer"))
    assert folders.find_classes(tmp_path) == ["ants", "k\u00e4fer"]
    names = folders.find_photos(tmp_path, ["ants", "k\u00e4fer"], seed=0)
    assert len(names["train"] + names["val"]) == 6


def test_what_is_not_named_like_a_photo_or_leads_nowhere_is_named(folder):
    write(folder, "train/ants/notes.txt", "val/bees/day 1/a.gif", "README.txt")
    (folder / "train" / "ants" / "gone.jpg").symlink_to("/nowhere.jpg")
    assert folders.unexpected_files(folder) == [
        f"{folder / 'train' / 'ants' / 'gone.jpg'}, a link that leads nowhere",
        str(folder / "train" / "ants" / "notes.txt"),
        str(folder / "val" / "bees" / "day 1" / "a.gif"),
    ]


def test_a_folder_without_photos_says_what_is_in_it(folder):
    bees = folder / "train" / "bees"
    for path in bees.iterdir():
        path.rename(path.with_suffix(".raw"))
    write(bees, "Makefile", *(f"{i}.x{i:02}" for i in range(10)))
    listed = (
        r"only 3 \.raw, 1 (\.x\d\d|Makefile)(, 1 (\.x\d\d|Makefile)){8}: put some there \(\.avif,"
    )
    with pytest.raises(StackError, match=rf"train/bees has no photos in it, {listed}"):
        folders.find_photos(folder, CLASSES, seed=0)
    shutil.rmtree(bees)
    bees.mkdir()
    with pytest.raises(StackError, match=r"train/bees has no photos in it: put some there"):
        folders.find_photos(folder, CLASSES, seed=0)


DRAWN = "on drawn pictures, knows nothing of real photos."


@pytest.mark.parametrize(
    ("drawn", "from_scratch", "said"),
    [
        (False, False, ""),
        (False, True, "Trained from random weights instead of ImageNet's: expect many mistakes."),
        (True, False, f"A demonstration: trained from ImageNet weights {DRAWN}"),
        (True, True, f"A demonstration: trained from random weights {DRAWN}"),
    ],
)
def test_what_to_know_before_trusting_the_model_is_said(tmp_path, drawn, from_scratch, said):
    if drawn:
        (tmp_path / sample.NOTE).touch()
    assert folders.disclaimer(tmp_path, from_scratch) == said
