"""Photos in memory or from files: which are read, which are skipped, and why."""

import shutil

import numpy as np
import pytest
import torch
from helpers import encode, split_folder, write_pictures
from PIL import Image

from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, dataset, folders, sample
from simplestack.training.dataset import Photos
from simplestack.training.distributed import World
from simplestack.training.options import merge, parse_arguments

CPU = torch.device("cpu")


@pytest.fixture
def photos(tmp_path):
    return split_folder(tmp_path / "photos")


@pytest.fixture
def ants(photos):
    return photos / "train" / "ants"


def opened(folder, cache=1):
    options = merge(parse_arguments(["--data-dir", str(folder), "--cache", str(cache)]), {})
    state = checkpoint.begin(options)
    train, val = dataset.load_photos(options, state, World(CPU))
    assert state.photos == {"train": train.names, "val": val.names}
    return (
        train,
        val,
        "\n".join(dataset.warnings(train, val, state.skipped, "COMMAND")),
        state.skipped,
    )


def test_unusable_photos_are_skipped_with_a_reason_in_plain_words(photos, ants):
    whole = (ants / "0.png").read_bytes()
    for name, data in (("cut", whole[:-40]), ("text", b"no photo"), ("empty", b"")):
        (ants / f"{name}.png").write_bytes(data)
    for size in ((1, 1), (20_000, 30), (9_000, 9_000)):
        Image.new("L", size).save(ants / f"odd{size[0]}.png")
    named = ("notes.txt", "photo.jpgg")
    for name in named:
        shutil.copy(ants / "0.png", ants / name)
    train, _, _, skipped = opened(photos)
    assert train.names == [f"train/{name}/{i}.png" for name in ("ants", "bees") for i in range(5)]
    for said in (
        "cut.png: The image is damaged or cut off, or too large to decode: use another file.",
        "text.png: This is not an image that can be read: use a JPEG",
        "empty.png: There is no image: this is empty.",
        *(*named, "odd1.png", "odd20000.png", "odd9000.png"),
    ):
        assert said in "\n".join(skipped)


def test_photos_of_phones_and_portable_maps_are_read(photos, ants):
    picture = Image.open(ants / "0.png").convert("L")
    names = {"a.heic": "HEIF", "a.heif": "HEIF", "a.pgm": "PPM", "a.ppm": "PPM"}
    for name, kind in names.items():
        (ants / name).write_bytes(encode(picture, kind))
    train, _, warnings, _ = opened(photos)
    assert {f"train/ants/{name}" for name in names} < set(train.names)
    assert warnings == ""


def test_copies_and_imbalanced_classes_are_reported(photos, ants):
    shutil.copy(ants / "0.png", photos / "val" / "ants" / "copy.png")
    write_pictures(photos / "train", 30, ("bees",))
    train, _, warnings, _ = opened(photos)
    assert "1 validation photo duplicated among the training photos, which flatters" in warnings
    assert "copy.png" in warnings
    advice = "look at the recall of each, and weigh all classes alike: COMMAND"
    assert f"imbalanced classes (5 ants, 30 bees): {advice}" in warnings
    *_, line = dataset.warnings(train, train, [], "")
    assert line.endswith("look at the recall of each")
    weights = train.class_weights()  # let each class count alike
    assert weights.tolist() == pytest.approx([35 / 10, 35 / 60])
    assert weights[train.labels].mean() == pytest.approx(1)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_photo_with_two_labels_is_called_that_on_whatever_side_its_copies_are(
    photos, ants, split
):
    for i in range(2):
        shutil.copy(ants / f"{i}.png", photos / split / "bees" / f"copy{i}.png")
    _, _, warnings, _ = opened(photos)
    pairs = (f"train/ants/{i}.png and {split}/bees/copy{i}.png" for i in range(2))
    assert warnings == f"2 photos in two classes: {'; '.join(pairs)}: keep one of each"


def test_a_class_without_a_usable_photo_is_one_clear_line(photos):
    for path in (photos / "val" / "ants").iterdir():
        path.write_text("no photo")
    with pytest.raises(StackError, match="none of the photos of ants"):
        opened(photos)


def test_photos_that_fit_the_memory_are_kept_and_are_the_same_from_files(photos):
    train, val, *_ = opened(photos, cache=1e-3)
    assert (train.in_memory is None, val.in_memory is None) == (True, False)
    kept, read = opened(photos)[0], opened(photos, cache=0)[0]
    plan = [torch.tensor([3, 0]), torch.tensor([9])]
    for first, second in zip(kept.batches(plan, CPU), read.batches(plan, CPU), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(("mode", "size"), [("RGB", (6000, 4000)), ("L", (17_280, 11_520))])
def test_a_large_photo_up_to_200_megapixels_is_kept_small_and_whole(photos, ants, mode, size):
    Image.new(mode, size).save(ants / "large.jpg", quality=20)
    train = opened(photos)[0]
    index = train.names.index("train/ants/large.jpg")
    assert train[index].shape == (dataset.TRAINING_SIDE, dataset.TRAINING_SIDE, 3)
    assert train.aspects[index] == 1.5


def test_a_validation_photo_has_the_pixels_that_serving_sees(tmp_path):
    sample.write(tmp_path / "drawn", {"train": 1, "val": 2})
    names = folders.split_photos(folders.scan(tmp_path / "drawn"), 0)["val"]
    photos = Photos(tmp_path / "drawn", names, ["ants", "bees"], whole=False)
    assert photos.labels[2] == 1
    assert np.array_equal(photos[2], images.read((photos.data_dir / photos.names[2]).read_bytes()))
