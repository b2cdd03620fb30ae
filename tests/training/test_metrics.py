"""Accuracy and its interval, calibration, precision and recall."""

import numpy as np
import pytest
import torch

from simplestack.training import metrics


def test_loss_is_the_mean_cross_entropy_and_accuracy_the_share_that_is_correct():
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    loss, accuracy = metrics.loss_and_accuracy(logits, torch.tensor([0, 0, 1]))
    assert loss == pytest.approx((0.693147 + 0.126928 + 2.126928) / 3, abs=1e-5)
    assert accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (10, 10, 0.7225, 1),
        (0, 10, 0, 0.2775),
        (1, 1, 0.2065, 1),
        (0, 1, 0, 0.7935),
        (148, 153, 0.9258, 0.9860),
    ],
)
def test_the_confidence_interval_is_wilsons(correct, total, low, high):
    assert metrics.interval(correct, total) == pytest.approx((low, high), abs=1e-4)


def test_the_confidence_interval_never_leaves_0_to_1():
    assert all(metrics.interval(0, n)[0] >= 0 for n in range(1, 200))
    assert all(metrics.interval(n, n)[1] <= 1 for n in range(1, 200))


@pytest.mark.parametrize(
    ("confidence", "correct", "error"),
    [
        ([0.85] * 10, [1] * 6 + [0] * 4, 0.25),
        ([0.75, 0.85] * 2, [1, 0] * 2, (0.25 + 0.85) / 2),  # in two bins
        ([0.82, 0.88] * 2, [1, 0] * 2, 0.35),  # in one
        ([0.7, 0.79], [1, 0], 0.245),
        ([0.55, 0.65, 0.95], [1, 1, 0], (0.45 + 0.35 + 0.95) / 3),
        ([0.0, 0.09], [0, 1], 0.455),
        ([0.92, 1.0], [0, 1], 0.46),  # the last bin has both
        ([1.0, 1.0], [1, 1], 0),
    ],
)
def test_calibration_error_is_the_distance_between_confidence_and_accuracy(
    confidence, correct, error
):
    right = np.array(correct, dtype=bool)
    assert metrics.calibration_error(np.array(confidence), right) == pytest.approx(error)


def test_precision_and_recall_of_each_class():
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    measured = metrics.compute_metrics(probabilities, torch.tensor([0, 0, 1, 1]), ["a", "b"])
    recall = pytest.approx(2 / 3)
    assert measured == {
        "photos": 4,
        "accuracy": 0.75,
        "accuracy_95": metrics.interval(3, 4),
        "calibration_error": pytest.approx((0.1 + 0.8 + 0.3 + 0.4) / 4, abs=1e-6),
        "classes": {
            "a": {"precision": 1, "recall": 0.5, "f1-score": recall, "support": 2},
            "b": {"precision": recall, "recall": 1, "f1-score": 0.8, "support": 2},
        },
        "macro avg": {
            "precision": pytest.approx(5 / 6),
            "recall": 0.75,
            "f1-score": pytest.approx(11 / 15),
            "support": 4,
        },
        "confusion": [[1, 1], [0, 2]],
    }


def test_what_cannot_be_measured_has_no_score_and_counts_in_no_average():
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
def test_a_share_of_few_photos_is_a_count_with_its_interval(correct, total, text):
    assert metrics.format_share(correct, total, ".1%") == text


@pytest.mark.parametrize(
    ("accuracy", "photos", "text"),
    [
        (18 / 19, 19, "0.9474 (18 of 19 photos, 95 % confidence interval 0.754 to 0.991)"),
        (0.95, 20, "0.9500 (95 % confidence interval 0.764 to 0.991)"),
    ],
)
def test_the_accuracy_on_few_photos_is_a_count_too(accuracy, photos, text):
    assert metrics.format_accuracy(accuracy, photos) == text


def lines(labels: list[int], classes: list[str], predicted: list[int] | None = None) -> list[str]:
    """Return the text about predictions that are sure, and correct unless others are given."""
    answers = torch.tensor(labels if predicted is None else predicted)
    probabilities = torch.nn.functional.one_hot(answers, len(classes)).float()
    measured = metrics.compute_metrics(probabilities, torch.tensor(labels), classes)
    return metrics.format_metrics(measured).splitlines()


def test_the_text_of_many_photos_has_scores_and_of_few_has_counts():
    assert lines([0] * 25 + [1], ["ants", "wasps"]) == [
        "accuracy 1.0000 on 26 validation photos (95 % confidence interval 0.871 to 1.000)",
        "calibration error 0.000",
        "ants   precision 1.000                    recall 1.000                    f1-score 1.000"
        "  (25 photos)",
        "wasps  precision 1 of 1 (0.207 to 1.000)  recall 1 of 1 (0.207 to 1.000)  f1-score –    "
        "  (1 photo)",
    ]


def test_a_name_in_the_text_cannot_control_a_terminal():
    assert lines([0, 1], ["a\x1b[31m", "b"])[1].startswith(r"a\x1b[31m  precision")


@pytest.mark.parametrize(("photos", "there"), [(19, False), (20, True)])
def test_the_calibration_of_few_photos_is_not_told(photos, there):
    assert ("calibration error" in lines([0] * photos, ["a", "b"])[1]) == there


@pytest.mark.parametrize(
    ("labels", "predicted", "f1"),
    [
        ([0] * 20 + [1], [0] * 20 + [1], "1.000"),
        ([0] * 20 + [1], [0] * 19 + [1] * 2, "–"),  # is predicted 19 times
        ([0] * 19 + [1] * 2, [0] * 20 + [1], "–"),  # is there 19 times
    ],
)
def test_the_f1_score_of_a_class_needs_20_photos_and_predictions(labels, predicted, f1):
    ants = next(line for line in lines(labels, ["ants", "bees"], predicted) if line[:4] == "ants")
    assert ants.split("f1-score ")[1].split()[0] == f1


def test_of_ten_classes_the_five_most_probable_count_too():
    probabilities = torch.arange(10.0).expand(2, 10) / 45
    measured = metrics.compute_metrics(probabilities, torch.tensor([5, 4]), list("abcdefghij"))
    assert measured["top-5"] == 0.5
    assert "top-5 accuracy 0.5000 (1 of 2 photos, 95" in metrics.format_metrics(measured)


def test_of_nine_classes_only_the_most_probable_counts():
    probabilities = torch.arange(9.0).expand(2, 9) / 36
    measured = metrics.compute_metrics(probabilities, torch.tensor([8, 4]), list("abcdefghi"))
    assert "top-5" not in measured
    assert measured["accuracy"] == 0.5
