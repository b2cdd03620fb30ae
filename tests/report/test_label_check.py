"""Photos that may have the wrong label, and near-duplicates."""

import re
import shutil

import pytest
import torch
from helpers import write_pictures

from simplestack.report import label_check
from simplestack.serving.errors import StackError
from simplestack.training import folders
from simplestack.training.checkpoint import Checkpoint

CLASSES = ["ants", "bees"]


def around(axis, count, seed=0):
    """Return features around an axis, 0.8 similar to each other."""
    noise = torch.randn(count, 512, generator=torch.Generator().manual_seed(seed))
    return torch.eye(512)[axis] + 0.5 * torch.nn.functional.normalize(noise)


def doubted(features, labels):
    probabilities = label_check.cross_validate(features, labels, 2)
    return label_check.wrong_labels(label_check.compare(features)[0], labels, probabilities)


def test_a_label_that_neighbours_and_a_head_contradict_is_doubted_if_its_class_has_many_photos():
    features, labels = torch.cat([around(0, 30), around(1, 30, seed=1)]), torch.arange(60) // 30
    assert doubted(features, labels) == []
    labels[[3, 40]] = 1 - labels[[3, 40]]
    assert sorted(doubted(features, labels)) == [3, 40]
    assert doubted(around(0, 35), torch.tensor([0] * 30 + [1] * 5)) == []
    features = torch.cat([around(0, 1), around(1, 1)])
    assert doubted(features, torch.tensor([0, 1])) == []
    assert label_check.compare(features)[0].tolist() == [[1], [0]]


def test_the_least_probable_label_comes_first():
    neighbours, labels = torch.tensor([[6, 7]] * 6 + [[8, 9]] * 6), torch.arange(12) // 6
    ants = torch.tensor([0.3, 0.1, 0.9, 0.4, 0.2, 0.6, *[0.0] * 6])
    found = label_check.wrong_labels(neighbours, labels, torch.stack([ants, 1 - ants], 1))
    assert found == [1, 4, 0, 3]


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_near_duplicates_are_found_once_the_most_similar_first(monkeypatch, chunk):
    monkeypatch.setattr(label_check, "CHUNK", chunk)
    features = torch.cat([around(i, 1, seed=i) for i in range(9)])
    features[7] = 2 * features[1]
    features[4] = features[0] + 0.3 * torch.eye(512)[300]
    neighbours, pairs, total = label_check.compare(features)
    assert [pair[1:] for pair in pairs] == [(1, 7), (0, 4)]
    assert pairs[0][0] == pytest.approx(1, abs=1e-6)
    assert (total, neighbours[7, 0]) == (2, 1)


def test_of_many_near_duplicates_a_few_are_shown_and_all_are_counted():
    _, pairs, total = label_check.compare(torch.ones(40, 512))
    assert (len(pairs), total) == (label_check.MAX_PAIRS, 40 * 39 // 2)


def test_the_caption_of_near_duplicates_in_two_classes_asks_for_the_label(tmp_path):
    write_pictures(tmp_path, 4, CLASSES)
    names = folders.split_photos(folders.scan(tmp_path), seed=0)
    ordered = names["train"] + names["val"]
    features = torch.eye(512)[:8]
    ants, bees = (ordered.index(f"{name}/0.png") for name in CLASSES)
    features[bees] = features[ants]
    (figure,) = label_check.find(
        Checkpoint(CLASSES, names, {}, "", {}, features=features), tmp_path
    ).near_duplicates
    assert re.search(r": similarity 1\.00: (ants or bees|bees or ants)\?$", figure.caption)


def test_photos_with_doubtful_labels_are_named_and_shown(tmp_path, monkeypatch):
    write_pictures(tmp_path, 10, CLASSES)
    names = folders.split_photos(folders.scan(tmp_path), seed=0)
    labels = torch.tensor([CLASSES.index(name[:4]) for part in names.values() for name in part])
    labels[0] = 1 - labels[0]  # by these features, that of the first is wrong
    features = torch.eye(512)[labels] + around(9, len(labels)) - torch.eye(512)[9]
    state = Checkpoint(CLASSES, names, {}, "", {}, features=features)
    found = label_check.find(state, tmp_path)
    (figure,) = found.wrong_labels
    said = f"{names['train'][0]}: ants, looks like bees. The most similar photo: bees/"
    assert figure.caption.startswith(said)
    assert [image[:23] for image in figure.images] == ["data:image/jpeg;base64,"] * 2
    assert (found.photos, found.compared) == (20, 20)
    with monkeypatch.context() as patch:
        patch.setattr(label_check, "MAX_COMPARED", 15)
        found = label_check.find(state, tmp_path)
    assert (found.photos, found.compared) == (20, 15)
    shutil.rmtree(tmp_path / "ants")
    with pytest.raises(StackError, match="No such file"):
        label_check.find(state, tmp_path)
