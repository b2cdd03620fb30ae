"""Photos in memory or from files: what is read, what is skipped, and how it is said."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import encode, split_folder, write_pictures
from PIL import Image

from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.training import dataset, folders, sample
from simplestack.training.dataset import Photos

CPU = torch.device("cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return split_folder(tmp_path / "photos")


def opened(folder: Path, budget: float = 1e9) -> tuple[Photos, Photos, str]:
    classes = folders.find_classes(folder)
    names = folders.find_photos(folder, classes, seed=0)
    train, val = dataset.open_photos(folder, names, classes, budget=budget, device=CPU)
    return train, val, "\n".join(dataset.warnings(train, val))


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


@pytest.mark.parametrize(
    ("name", "kind"), [("a.heic", "HEIF"), ("a.heif", "HEIF"), ("a.ppm", "PPM"), ("a.pgm", "PPM")]
)
def test_photos_of_phones_and_portable_maps_are_read(photos: Path, name: str, kind: str) -> None:
    picture = Image.open(photos / "train" / "ants" / "0.png").convert("L")
    (photos / "train" / "ants" / name).write_bytes(encode(picture, kind))
    train, _, warnings = opened(photos)
    assert f"train/ants/{name}" in train.names
    assert warnings == ""


def test_why_a_photo_is_skipped_is_told_in_plain_words(photos: Path) -> None:
    whole = (photos / "train" / "ants" / "0.png").read_bytes()
    for name, data in (("cut", whole[:-40]), ("text", b"no photo"), ("empty", b"")):
        (photos / "train" / "ants" / f"{name}.png").write_bytes(data)
    warnings = opened(photos)[2]
    assert "cut.png: The image is damaged or cut off: use an undamaged file." in warnings
    assert "text.png: This is not an image that can be read: use a JPEG" in warnings
    assert "empty.png: There is no image: this is empty." in warnings


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
    assert opened(photos)[2].count("ants/broken") == dataset.EXAMPLES


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


def test_photos_are_kept_only_if_all_of_them_fit_the_memory(photos: Path) -> None:
    train, val, _ = opened(photos, budget=1e6)
    assert val.in_memory is not None
    assert train.in_memory is None


def test_photos_are_the_same_from_memory_and_from_files(photos: Path) -> None:
    kept, read = opened(photos)[0], opened(photos, budget=0)[0]
    plan = [torch.tensor([3, 0]), torch.tensor([9])]
    for first, second in zip(kept.batches(plan, CPU), read.batches(plan, CPU), strict=True):
        assert torch.equal(first, second)


def test_a_large_photo_is_kept_small_and_whole(photos: Path) -> None:
    Image.new("RGB", (6000, 4000)).save(photos / "train" / "ants" / "large.jpg")
    train, _, _ = opened(photos)
    index = train.names.index("train/ants/large.jpg")
    assert train[index].shape == (dataset.SIDE, dataset.SIDE, 3)
    assert train.aspects[index] == 1.5


def test_validation_photo_is_what_serving_sees(tmp_path: Path) -> None:
    sample.write(tmp_path / "drawn", {"train": 1, "val": 2})
    names = folders.find_photos(tmp_path / "drawn", ["ants", "bees"], 0)["val"]
    photos = Photos(tmp_path / "drawn", names, ["ants", "bees"], whole=False)
    assert photos.labels[2] == 1
    assert np.array_equal(photos[2], images.read(photos.paths[2].read_bytes()))


def test_a_signal_that_comes_while_signals_are_held_comes_afterwards() -> None:
    with pytest.raises(KeyboardInterrupt), dataset.held_signals():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        held = True
    assert held


def test_class_weights_let_each_class_count_alike(photos: Path) -> None:
    write_pictures(photos / "train", 15, ("bees",))
    train, _, _ = opened(photos)
    weights = train.class_weights()
    assert weights.tolist() == pytest.approx([20 / 10, 20 / 30])
    assert weights[train.labels].mean() == pytest.approx(1)
