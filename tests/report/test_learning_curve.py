"""The learning curve of a report: accuracy with fewer training photos."""

import pytest
import torch

from simplestack.report import learning_curve
from simplestack.training.checkpoint import Checkpoint


def measured(labels, targets, noise=1.0):
    """Return the curve of features around an axis for each class."""
    classes = ["ants", "bees", "rare"][: int(labels.max()) + 1]
    every = torch.cat([labels, targets])
    random = torch.randn(len(every), 512, generator=torch.Generator().manual_seed(0))
    state = Checkpoint(classes, {}, {}, "", {}, features=4 * torch.eye(512)[every] + noise * random)
    return learning_curve.measure(state, labels, targets)


def test_accuracy_grows_with_the_photos_and_has_a_spread_over_draws():
    curve = measured(torch.arange(80) % 2, torch.arange(200) % 2, noise=1.5)
    assert (curve.sizes, curve.draws) == ([10, 20, 40, 80], 6)
    assert [name for name, _ in curve.rows] == ["all", "ants", "bees"]
    (_, spreads), *_ = curve.rows
    means = [mean for mean, _, _ in spreads]
    assert means == sorted(means)
    assert means[0] < means[-1] - 0.05
    assert all(low < mean < high for mean, low, high in spreads[:3])
    assert spreads[3] == pytest.approx([means[3]] * 3)


def test_each_draw_has_a_share_of_each_class_and_at_least_one_photo(monkeypatch):
    fitted, fit_head = [], learning_curve.fit_head

    def record(features, labels, classes):
        fitted.append(labels.bincount(minlength=classes).tolist())
        return fit_head(features, labels, classes)

    monkeypatch.setattr(learning_curve, "fit_head", record)
    measured(torch.tensor([0] * 24 + [1] * 16 + [2]), torch.arange(60) % 3)
    assert fitted[:4] == [[3, 2, 1], [6, 4, 1], [12, 8, 1], [24, 16, 1]]
    assert len(fitted) == 4 + 5 * 3  # all photos once


def test_classes_with_few_validation_photos_are_left_out():
    labels = torch.arange(40) % 3
    curve = measured(labels, torch.tensor([0] * 19 + [1] * 20 + [2] * 5))
    assert [name for name, _ in curve.rows] == ["all", "bees"]
    assert measured(labels, torch.arange(19) % 3).rows == []


@pytest.mark.parametrize(
    ("count", "sizes", "draws"), [(60, [8, 16, 30, 60], 5), (400, [13, 25, 50, 100], 3)]
)
def test_many_photos_have_fewer_draws_and_a_sample(monkeypatch, count, sizes, draws):
    monkeypatch.setattr(learning_curve, "MAX_FITTED", 100)
    monkeypatch.setattr(learning_curve, "DRAWN", 300)
    curve = measured(torch.arange(count) % 2, torch.arange(40) % 2)
    assert curve.draws == draws
    assert all(size in (n, n + 1) for size, n in zip(curve.sizes, sizes, strict=True))
