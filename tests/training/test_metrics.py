"""Accuracy and its interval, calibration, precision and recall."""

import numpy as np
import pytest
import torch

from simplestack.training import metrics


def test_the_confidence_interval_is_wilsons() -> None:
    assert metrics.interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_a_perfect_score_still_has_an_interval() -> None:
    assert metrics.interval(10, 10)[0] == pytest.approx(0.7225, abs=1e-4)


def test_calibration_error_is_the_distance_between_confidence_and_accuracy() -> None:
    confidence, right = np.full(10, 0.85), np.arange(10) < 6
    assert metrics.calibration_error(confidence, right) == pytest.approx(0.25)


def test_precision_and_recall_of_each_class() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    measured = metrics.compute_metrics(probabilities, torch.tensor([0, 0, 1, 1]), ["a", "b"])
    assert measured["confusion"] == [[1, 1], [0, 2]]
    row = {"precision": 1, "recall": 0.5, "f1-score": pytest.approx(2 / 3), "support": 2}
    assert measured["classes"]["a"] == row
    assert measured["classes"]["b"]["precision"] == pytest.approx(2 / 3)
    assert measured["macro avg"]["recall"] == 0.75
    assert "top-5" not in measured


def test_of_ten_classes_the_five_most_probable_count_too() -> None:
    probabilities = torch.arange(10.0).expand(2, 10)
    measured = metrics.compute_metrics(probabilities, torch.tensor([5, 4]), list("abcdefghij"))
    assert measured["top-5"] == 0.5
