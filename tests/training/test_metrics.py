"""Accuracy and its interval, calibration, precision and recall."""

import numpy as np
import pytest
import torch

from simplestack.training import metrics

approx = pytest.approx


def test_loss_is_the_mean_cross_entropy_and_accuracy_the_share_that_is_correct():
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    measured = metrics.loss_and_accuracy(logits, torch.tensor([0, 0, 1, 0]))
    assert measured == (approx((0.693147 + 0.126928 + 2 * 2.126928) / 4, abs=1e-5), 0.5)


def test_the_confidence_interval_is_wilsons_and_never_leaves_0_to_1():
    for (correct, total), expected in {
        **{(8, 10): (0.4902, 0.9433), (10, 10): (0.7225, 1), (0, 10): (0, 0.2775)},
        **{(1, 1): (0.2065, 1), (0, 1): (0, 0.7935), (148, 153): (0.9258, 0.9860)},
    }.items():
        assert metrics.interval(correct, total) == approx(expected, abs=1e-4)
    assert all(metrics.interval(0, n)[0] >= 0 for n in range(1, 200))
    assert all(metrics.interval(n, n)[1] <= 1 for n in range(1, 200))


@pytest.mark.parametrize(
    ("confidence", "correct", "error"),
    [
        ([0.85] * 10, [1] * 6 + [0] * 4, 0.25),
        ([0.75, 0.85] * 2, [1, 0] * 2, (0.25 + 0.85) / 2),  # in two bins
        ([0.82, 0.88] * 2, [1, 0] * 2, 0.35),  # in one
        ([0.7, 0.79], [1, 0], 0.245),
        ([0.0, 0.09], [0, 1], 0.455),
        ([0.92, 1.0], [1, 0], 0.46),  # the last bin has both
    ],
)
def test_calibration_error_is_the_distance_of_confidence_from_accuracy(confidence, correct, error):
    right = np.array(correct, dtype=bool)
    assert metrics.calibration_error(np.array(confidence), right) == approx(error)


def row(precision, recall, f1, support):
    return {"precision": precision, "recall": recall, "f1-score": f1, "support": support}


def test_precision_and_recall_of_each_class():
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    measured = metrics.compute_metrics(probabilities, torch.tensor([0, 0, 1, 1]), ["a", "b"])
    assert measured == {
        **{"photos": 4, "accuracy": 0.75, "accuracy_95": metrics.interval(3, 4)},
        "calibration_error": approx((0.1 + 0.8 + 0.3 + 0.4) / 4, abs=1e-6),
        "classes": {"a": row(1, 0.5, approx(2 / 3), 2), "b": row(approx(2 / 3), 1, 0.8, 2)},
        "macro avg": row(approx(5 / 6), 0.75, approx(11 / 15), 4),
        "confusion": [[1, 1], [0, 2]],
    }


def test_a_class_without_photos_or_predictions_has_no_score_and_counts_in_no_average():
    probabilities = torch.tensor([[0.9, 0.1, 0], [0.2, 0.8, 0]])
    measured = metrics.compute_metrics(probabilities, torch.tensor([0, 0]), ["a", "b", "c"])
    assert measured["classes"]["b"] == row(0, None, 0, 0)
    assert measured["classes"]["c"] == row(None, None, None, 0)
    assert measured["macro avg"] == row(0.5, 0.5, approx(1 / 3), 2)
    assert metrics.format_classes(measured, ".0%") == [
        ("a", "2", "1 of 1 (21% to 100%)", "1 of 2 (9% to 91%)", "–"),
        ("b", "0", "0 of 1 (0% to 79%)", "–", "–"),
        ("c", "0", "–", "–", "–"),
    ]


def test_a_share_or_accuracy_of_few_photos_is_a_count_with_its_interval():
    for shares, text in {
        **{(0, 0): "–", (1, 1): "1 of 1 (20.7% to 100.0%)", (0, 19): "0 of 19 (0.0% to 16.8%)"},
        **{(20, 20): "100.0%", (67, 70): "95.7%"},
    }.items():
        assert metrics.format_share(*shares, ".1%") == text
    few = "0.9474 (18 of 19 photos, 95 % confidence interval 0.754 to 0.991)"
    assert metrics.format_accuracy(18 / 19, 19) == few
    many = "0.9500 (95 % confidence interval 0.764 to 0.991)"
    assert metrics.format_accuracy(0.95, 20) == many


def lines(labels, classes, predicted=None):
    """Return the text about sure predictions, which are correct by default."""
    answers = torch.tensor(predicted or labels)
    probabilities = torch.nn.functional.one_hot(answers, len(classes)).float()
    measured = metrics.compute_metrics(probabilities, torch.tensor(labels), classes)
    return metrics.format_metrics(measured).splitlines()


def test_the_text_of_many_photos_has_scores_and_of_few_has_counts():
    space, one = " " * 20, "1 of 1 (0.207 to 1.000)"
    assert lines([0] * 25 + [1], ["ants", "wa\x1b[31m"]) == [
        "accuracy 1.0000 on 26 validation photos (95 % confidence interval 0.871 to 1.000)",
        "calibration error 0.000",
        f"ants        precision 1.000{space}recall 1.000{space}f1-score 1.000  (25 photos)",
        rf"wa\x1b[31m  precision {one}  recall {one}  f1-score –      (1 photo)",
    ]


@pytest.mark.parametrize(("photos", "there"), [(19, False), (20, True)])
def test_the_calibration_of_few_photos_is_not_told(photos, there):
    assert ("calibration error" in lines([0] * photos, ["a", "b"])[1]) == there


@pytest.mark.parametrize(
    ("labels", "predicted", "f1"), [(20, 20, "1.000"), (20, 19, "–"), (19, 20, "–")]
)
def test_the_f1_score_of_a_class_needs_20_photos_and_predictions(labels, predicted, f1):
    truth, answers = ([0] * count + [1] * (21 - count) for count in (labels, predicted))
    (ants,) = (x for x in lines(truth, ["ants", "bees"], answers) if x.startswith("ants"))
    assert ants.split("f1-score ")[1].split()[0] == f1


def test_from_ten_classes_on_the_five_most_probable_count_too():
    probabilities = torch.arange(10.0).expand(2, 10) / 45
    measured = metrics.compute_metrics(probabilities, torch.tensor([5, 4]), list("abcdefghij"))
    assert measured["top-5"] == 0.5
    assert "top-5 accuracy 0.5000 (1 of 2 photos, 95" in metrics.format_metrics(measured)
    of_nine = metrics.compute_metrics(probabilities[:, :9], torch.tensor([8, 4]), list("abcdefghi"))
    assert "top-5" not in of_nine
    assert of_nine["accuracy"] == 0.5
