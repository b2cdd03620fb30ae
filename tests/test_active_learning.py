"""Which photos are worth labelling first."""

import numpy as np

from simplestack import active_learning


def around(axis, count):
    """Return features around an axis, with the length 1."""
    noise = 0.02 * np.random.default_rng(axis).standard_normal((count, 512))
    features = np.eye(512)[axis] + noise
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def probabilities(*best):
    return np.array([[p, 1 - p] for p in best])


def test_uncertain_photos_that_differ_from_each_other_are_chosen():
    features = np.vstack([around(0, 10), around(1, 10), around(2, 10)])
    doubtful = probabilities(*[0.52] * 10, *[0.55] * 10, *[1] * 10)
    chosen = active_learning.choose(doubtful, features, 2)
    assert [i // 10 for i in chosen] == [0, 1]  # one of each kind; the first is less certain
    assert chosen == active_learning.choose(doubtful, features, 2)


def test_certain_photos_are_left_out_if_there_are_enough_others(monkeypatch):
    monkeypatch.setattr(active_learning, "CANDIDATES", 2)
    doubtful = probabilities(0.99, 0.99, 0.6, 0.7, 0.8, 0.55)
    features = np.vstack([around(1, 2), around(0, 1).repeat(4, 0)])  # the certain ones differ most
    assert set(active_learning.choose(doubtful, features, 2)) < {2, 3, 4, 5}


def test_small_groups_have_a_photo_each_beside_a_large_one():
    sizes = {0: 60, 1: 3, 2: 3, 3: 3}
    features = np.vstack([around(axis, 1).repeat(size, 0) for axis, size in sizes.items()])
    chosen = active_learning.choose(probabilities(*[0.6] * 69), features, 4)
    assert sorted((i - 57) // 3 for i in chosen if i >= 60) == [1, 2, 3]


def test_the_least_certain_photo_has_the_smallest_margin_between_two_classes():
    doubtful = np.array([[0.6, 0.4, 0], [0.38, 0.32, 0.3], [0.5, 0.47, 0.03]])
    assert active_learning.choose(doubtful, around(0, 3), 3) == [2, 1, 0]


def test_of_few_photos_all_are_chosen_the_least_certain_first():
    assert active_learning.choose(probabilities(0.9, 0.6, 0.7), around(0, 3), 12) == [1, 2, 0]


def test_copies_can_be_chosen_and_each_only_once():
    chosen = active_learning.choose(probabilities(*[1.0] * 30), around(0, 1).repeat(30, 0), 12)
    assert len(set(chosen)) == 12
