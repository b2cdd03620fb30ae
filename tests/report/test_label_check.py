"""Photos that may have the wrong label, and near-duplicates."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import write_pictures
from torch import Tensor

from simplestack.serving.errors import StackError
from simplestack.training import folders, suspects
from simplestack.training.dataset import Photos

CLASSES = ["ants", "bees"]


def around(axis: int, count: int, seed: int = 0) -> Tensor:
    """Return features around an axis, 0.8 similar to each other."""
    noise = torch.nn.functional.normalize(
        torch.randn(count, 512, generator=torch.Generator().manual_seed(seed))
    )
    return torch.eye(512)[axis] + 0.5 * noise


def doubted(features: Tensor, labels: Tensor) -> list[int]:
    probabilities = suspects.cross_validate(features, labels, 2)
    return suspects.wrong_labels(suspects.compare(features).neighbours, labels, probabilities)


def test_a_label_that_neighbours_and_a_head_contradict_is_doubted() -> None:
    features = torch.cat([around(0, 30), around(1, 30, seed=1)])
    labels = torch.arange(60) // 30
    assert doubted(features, labels) == []
    labels[[3, 40]] = 1 - labels[[3, 40]]
    assert sorted(doubted(features, labels)) == [3, 40]


def test_the_least_probable_label_comes_first() -> None:
    neighbours, labels = torch.tensor([[6, 7]] * 6 + [[8, 9]] * 6), torch.arange(12) // 6
    ants = torch.tensor([0.3, 0.1, 0.9, 0.4, 0.2, 0.6, *[0.0] * 6])
    assert suspects.wrong_labels(neighbours, labels, torch.stack([ants, 1 - ants], 1)) == [
        *(1, 4, 0, 3)
    ]


def test_the_few_photos_of_a_class_are_not_doubted() -> None:
    labels = torch.tensor([0] * 30 + [1] * 5)
    assert doubted(around(0, 35), labels) == []


def test_two_photos_are_enough() -> None:
    features, labels = torch.cat([around(0, 1), around(1, 1)]), torch.tensor([0, 1])
    assert doubted(features, labels) == []
    assert suspects.compare(features).neighbours.tolist() == [[1], [0]]


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_near_duplicates_are_found_once_the_most_similar_first(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(suspects, "CHUNK", chunk)
    features = torch.cat([around(i, 1, seed=i) for i in range(9)])
    features[7] = 2 * features[1]
    features[4] = features[0] + 0.3 * torch.eye(512)[300]
    found = suspects.compare(features)
    assert [pair[1:] for pair in found.pairs] == [(1, 7), (0, 4)]
    assert found.pairs[0][0] == pytest.approx(1, abs=1e-6)
    assert found.total == 2
    assert found.neighbours[7, 0] == 1


def test_of_many_near_duplicates_a_few_are_shown_and_all_are_counted() -> None:
    found = suspects.compare(torch.ones(40, 512))
    assert (len(found.pairs), found.total) == (suspects.SHOWN_PAIRS, 40 * 39 // 2)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Photos]:
    """Ten photos of each class."""
    folder = tmp_path_factory.mktemp("photos")
    write_pictures(folder, 10, CLASSES)
    names = folders.find_photos(folder, CLASSES, seed=0)
    return [Photos(folder, names[split], CLASSES, whole=split == "train") for split in names]


def features_of(parts: list[Photos]) -> Tensor:
    """Return features by which the label of the first training photo is wrong."""
    labels = torch.cat([photos.labels for photos in parts])
    labels[0] = 1 - labels[0]
    return torch.eye(512)[labels] + around(9, len(labels)) - torch.eye(512)[9]


def test_they_are_named_and_shown_with_the_most_similar_photo(parts: list[Photos]) -> None:
    found = suspects.find(features_of(parts), *parts)
    (figure,) = found["wrong_labels"]
    name = parts[0].names[0]
    said = f"{name}: ants, looks like bees. The most similar photo: bees/"
    assert figure["caption"].startswith(said)
    assert [image[:23] for image in figure["images"]] == ["data:image/jpeg;base64,"] * 2
    assert (found["photos"], found["compared"]) == (20, 20)


def test_of_very_many_photos_some_are_compared(
    parts: list[Photos], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspects, "MOST", 15)
    found = suspects.find(features_of(parts), *parts)
    assert (found["photos"], found["compared"]) == (20, 15)


def test_a_photo_that_went_away_meanwhile_is_one_clear_line(
    parts: list[Photos], tmp_path: Path
) -> None:
    moved = shutil.copytree(parts[0].data_dir, tmp_path / "moved")
    gone = [Photos(moved, p.names, CLASSES, whole=p.whole) for p in parts]
    shutil.rmtree(moved)
    with pytest.raises(StackError, match="No such file"):
        suspects.find(features_of(gone), *gone)
