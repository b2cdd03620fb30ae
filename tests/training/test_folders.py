"""Folders of photos: found, split or rejected. None is opened, so any files will do."""

import os
import re
import shutil

import numpy as np
import pytest
from helpers import ODD_NAME, odd_names

from simplestack.serving.errors import StackError
from simplestack.training import folders, sample

CLASSES = ["ants", "bees"]


def write(folder, *names):
    """Write files below a folder, each with a content of its own."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(name))
    return folder


def numbered(count, *classes):
    return [f"{name}/{i}.png" for name in classes for i in range(count)]


def split(folder, seed=0, classes=CLASSES):
    assert folders.scan(folder).classes() == classes
    return folders.split_photos(folders.scan(folder), seed)


@pytest.fixture
def folder(tmp_path):
    """Three photos of each class for training, and two for validation."""
    write(tmp_path / "train", *numbered(3, *CLASSES))
    write(tmp_path / "val", *numbered(2, *CLASSES))
    return tmp_path


@pytest.mark.parametrize(
    ("train", "val"),
    [
        *(("train", "val"), ("Train", "Valid"), ("training", "TEST"), ("train", "validation")),
        *(("Training", "val"), ("train", "test")),
    ],
)
def test_photos_for_training_and_validation_are_those_in_their_folders(folder, train, val):
    (folder / "train").rename(folder / train)
    (folder / "val").rename(folder / val)
    assert split(folder) == {
        "train": [f"{train}/{name}" for name in numbered(3, *CLASSES)],
        "val": [f"{val}/{name}" for name in numbered(2, *CLASSES)],
    }


def test_class_folders_alone_are_split_class_by_class(tmp_path):
    written = [*numbered(120, "Bienen & Käfer"), *numbered(60, *CLASSES)]
    classes = ["Bienen & Käfer", "ants", "bees"]
    names = split(write(tmp_path, *written), classes=classes)
    assert sorted(names["train"] + names["val"]) == sorted(written)
    for class_name, share in zip(classes, (120, 60, 60), strict=True):
        held_out = sum(name.startswith(f"{class_name}/") for name in names["val"])
        assert held_out == share / 5


@pytest.mark.parametrize(
    ("hashes", "in_val"),
    [
        ([0.3, 0.2, 0.4, 0.5], "b"),
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], "gh"),
        ([0.1, 0.2, 0.3, 0.1, 0.4], "ad"),  # copies
        ([0.5, 0.1], "b"),
        ([0.1, 0.1], "a"),
    ],
)
def test_validation_photos_are_the_fifth_with_the_smallest_hashes(hashes, in_val):
    names = "abcdefgh"[: len(hashes)]
    parts = folders.hold_out(list(names), dict(zip(names, hashes, strict=True)))
    assert ["".join(part) for part in parts] == ["".join(sorted(set(names) - set(in_val))), in_val]


@pytest.mark.parametrize(("photos", "held_out"), [(2, 1), (6, 1), (7, 1), (8, 2), (41, 8), (42, 8)])
def test_a_fifth_of_each_class_is_held_out_however_rare_it_is(photos, held_out):
    names = [str(i) for i in range(photos)]
    rng = np.random.default_rng(photos)
    assert (
        len(folders.hold_out(names, dict(zip(names, rng.random(photos), strict=True)))[1])
        == held_out
    )


def test_hashes_are_spread_evenly_between_0_and_1(tmp_path):
    names = numbered(200, "ants")
    hashes = sorted(folders.hash_photos(write(tmp_path, *names), names, seed=0).values())
    assert 0 <= hashes[0] < 0.1
    assert 0.4 < hashes[100] < 0.6
    assert 0.9 < hashes[-1] < 1


def test_each_of_a_hundred_photos_that_are_added_moves_at_most_one_other():
    rng = np.random.default_rng(0)
    hashes = {str(i): x for i, x in enumerate(rng.random(110))}
    moved = []
    for n in range(10, 110):
        (_, before), (_, after) = (folders.hold_out(list(hashes)[:m], hashes) for m in (n, n + 1))
        moved.append(len(set(before) ^ set(after) - {str(n)}))
    assert set(moved) == {0, 1}


def test_copies_of_a_photo_are_on_one_side(tmp_path):
    write(tmp_path, *numbered(30, *CLASSES))
    for path in list(tmp_path.glob("*/*.png")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    contents = [
        {(tmp_path / name).read_bytes() for name in part} for part in split(tmp_path).values()
    ]
    assert not set.intersection(*contents)


def test_changes_are_counted(tmp_path):
    before = folders.scan(write(tmp_path, *numbered(5, "Biene", "Wespe")))
    assert before.sizes == dict.fromkeys(numbered(5, "Biene", "Wespe"), len("Biene/0.png"))

    def changes():
        return folders.changes(folders.scan(tmp_path), before.classes(), before.sizes)

    assert changes() == ""
    write(tmp_path, *numbered(19, "Hummel"))
    (tmp_path / "Biene" / "0.png").unlink()
    assert changes() == "19 new photos, 1 gone, new class Hummel"
    shutil.rmtree(tmp_path / "Hummel")
    shutil.rmtree(tmp_path / "Biene")
    write(tmp_path, *numbered(1, "Fliege"))
    (tmp_path / "Wespe" / "1.png").write_text("another one")
    (tmp_path / "Wespe" / "2.png").write_text("another size")
    said = "1 new photo, 5 gone, 1 edited, new class Fliege, class Biene gone"
    assert changes() == said


def test_any_labelled_folder_can_be_evaluated_on(folder):
    classes = ["ants", "bees", "wasps"]
    held_out = [f"val/{name}" for name in numbered(2, *CLASSES)]
    assert folders.find_labelled(folders.scan(folder), classes) == held_out
    assert folders.find_labelled(folders.scan(folder / "train"), classes) == numbered(3, *CLASSES)
    shutil.rmtree(folder / "train" / "bees")
    assert folders.find_labelled(folders.scan(folder / "train"), CLASSES) == numbered(3, "ants")
    with pytest.raises(StackError, match=r"ants has no photos in it: name another folder"):
        folders.find_labelled(folders.scan(folder / "train" / "ants"), classes)
    write(folder / "val", *numbered(1, *(f"c{i:02}" for i in range(12))))
    said = r"no class of the checkpoint \(ants, wasps\): bees, c00, .*, c08\. Move them away"
    with pytest.raises(StackError, match=said):
        folders.find_labelled(folders.scan(folder), ["ants", "wasps"])


@odd_names
def test_a_class_folder_whose_name_is_no_text_is_one_clear_line(tmp_path):
    with pytest.raises(StackError, match="rename that folder"):
        folders.scan(write(tmp_path, *numbered(2, "bees", ODD_NAME)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("rm -r train/bees", "{}/train needs at least two class folders, has ants: run `sh get_"),
        ("rm -r val/*", "{}/val needs at least two class folders, has none: run `sh get_data.sh`"),
        ("rm -r .", "there are no photos in {}: run `sh get_data.sh`"),
        ("rm -r val", "there are no photos in {}/val"),
        ("mkdir train/w", "{0}/train and {0}/val must have the same class folders: w is in one of"),
        ("mkdir val/w", "{0}/train and {0}/val must have the same class folders: w is in one of"),
        ("mv train/ants train/val && mv val/ants val/val", "a class can't be called val there"),
        ("rm train/bees/*; touch train/bees/0", "train/bees has no photos in it: put some there"),
        ("mv train/* . && rm -r train val bees/[12]*", "bees/0.png is the only photo of its class"),
    ],
)
def test_folders_that_do_not_fit_together_are_one_clear_line(folder, change, said):
    os.system(f"cd {folder} && {change.replace(' .', f' {folder}')}")  # noqa: S605
    with pytest.raises(StackError, match=re.escape(said.format(folder))):
        split(folder)


def test_folders_below_a_class_belong_to_it(tmp_path):
    write(tmp_path, *numbered(3, *CLASSES), "ants/day 1/bees/x.png")
    found = [name for names in split(tmp_path).values() for name in names]
    assert "ants/day 1/bees/x.png" in found
    assert [folders.class_of(name, CLASSES) for name in found].count("ants") == 4
    for name, of in (("val/bees/0.png", "bees"), ("0.png", ""), ("val/day 1/bees/0.png", "")):
        assert folders.class_of(name, CLASSES) == of


def test_photos_are_files_named_like_photos_in_order(tmp_path):
    there = (
        "a.avif b.bmp c.heic d.heif e.jfif f.jpeg g.gif h.JPG i.jpg j.pgm k.png l.ppm m.tif n.webp"
    )
    write(tmp_path, *reversed(there.split()), "b.txt", "jpg")
    (tmp_path / "o.jpg").mkdir()
    photos = filter(folders.is_photo, folders.files_in(tmp_path))
    assert " ".join(path.name for path in photos) == there


def test_files_of_operating_systems_are_ignored(folder):
    for part in ("train", "val"):
        for name in ("__MACOSX", ".ipynb_checkpoints", "ants/.cache"):
            write(folder / part / name, "0.png")
        write(folder / part / "ants", "._00.jpg", "Thumbs.db", ".DS_Store", "desktop.ini")
    assert folders.scan(folder).unexpected == []
    assert len(split(folder)["train"]) == 6


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, *numbered(2, "train", "ants"))
    assert folders.scan(tmp_path).classes() == ["ants", "train"]


def test_other_files_and_links_that_lead_nowhere_are_named(folder):
    write(folder, "train/ants/notes.txt", "val/bees/day 1/a.doc", "README.txt")
    (folder / "train" / "ants" / "gone.jpg").symlink_to("/nowhere.jpg")
    assert folders.scan(folder).unexpected == [
        f"{folder}/train/ants/gone.jpg: broken link",
        f"{folder}/train/ants/notes.txt: not named like a photo",
        f"{folder}/val/bees/day 1/a.doc: not named like a photo",
    ]


def test_the_disclaimer_names_random_weights_and_drawn_pictures(tmp_path):
    random = "Trained from random weights instead of ImageNet's: expect many mistakes."
    assert [folders.disclaimer(tmp_path, x) for x in (False, True)] == ["", random]
    (tmp_path / sample.NOTE).touch()
    for from_scratch, weights in ((False, "ImageNet"), (True, "random")):
        said = f"A demonstration: trained from {weights} weights on drawn pictures, knows nothing"
        assert folders.disclaimer(tmp_path, from_scratch) == f"{said} of real photos."
