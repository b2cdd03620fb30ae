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


def test_what_cannot_be_measured_has_no_score_and_counts_in_no_average() -> None:
    probabilities = torch.tensor([[0.9, 0.1, 0], [0.2, 0.8, 0]])
    measured = metrics.compute_metrics(probabilities, torch.tensor([0, 0]), ["a", "b", "c"])
    rows = measured["classes"]
    assert rows["b"] == {"precision": 0, "recall": None, "f1-score": 0, "support": 0}
    assert rows["c"] == {"precision": None, "recall": None, "f1-score": None, "support": 0}
    assert measured["macro avg"]["recall"] == 0.5
    assert measured["macro avg"]["precision"] == 0.5
    table = {row[0]: row[1:] for row in metrics.format_classes(measured, ".0%")}
    assert table["a"] == ("2", "1 of 1 (21% to 100%)", "1 of 2 (9% to 91%)", "–")
    assert table["b"] == ("0", "0 of 1 (0% to 79%)", "–", "–")
    assert table["c"] == ("0", "–", "–", "–")


@pytest.mark.parametrize(
    ("correct", "total", "text"),
    [
        (0, 0, "–"),
        (1, 1, "1 of 1 (20.7% to 100.0%)"),
        (9, 9, "9 of 9 (70.1% to 100.0%)"),
        (0, 19, "0 of 19 (0.0% to 16.8%)"),
        (20, 20, "100.0%"),
        (67, 70, "95.7%"),
    ],
)
def test_a_share_of_few_photos_is_a_count_with_its_interval(
    correct: int, total: int, text: str
) -> None:
    assert metrics.format_share(correct, total, ".1%") == text


def test_the_text_of_many_photos_has_scores_and_of_few_has_counts() -> None:
    labels = torch.tensor([0] * 25 + [1])
    probabilities = torch.nn.functional.one_hot(labels, 2).float()
    text = metrics.format_metrics(metrics.compute_metrics(probabilities, labels, ["ants", "wasps"]))
    assert text.splitlines() == [
        "accuracy 1.0000 on 26 validation photos (95 % confidence interval 0.871 to 1.000)",
        "calibration error 0.000",
        "ants   precision 1.000                    recall 1.000                    f1-score 1.000"
        "  (25 photos)",
        "wasps  precision 1 of 1 (0.207 to 1.000)  recall 1 of 1 (0.207 to 1.000)  f1-score –    "
        "  (1 photo)",
    ]


def test_of_ten_classes_the_five_most_probable_count_too() -> None:
    probabilities = torch.arange(10.0).expand(2, 10)
    measured = metrics.compute_metrics(probabilities, torch.tensor([5, 4]), list("abcdefghij"))
    assert measured["top-5"] == 0.5
