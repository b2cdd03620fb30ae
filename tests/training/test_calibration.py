"""The temperature that brings confidence closer to accuracy, fitted to validation photos."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from simplestack.training import calibration


def drawn(temperature, photos=2000, classes=3):
    """Return logits, and classes drawn with their probabilities at that temperature."""
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(photos, classes, generator=random)
    probabilities = (logits / temperature).softmax(1)
    return logits, probabilities.multinomial(1, generator=random)[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.5, 3])
def test_the_temperature_that_made_the_labels_is_found_and_lowers_the_log_loss(temperature):
    logits, targets = drawn(temperature)
    found = calibration.fit(logits, targets).temperature
    assert found == pytest.approx(temperature, rel=0.1)
    assert cross_entropy(logits / found, targets) < cross_entropy(logits, targets)


def test_a_photo_has_no_influence_on_its_own_temperature():
    logits, targets = drawn(3, photos=30)
    before = calibration.fit(logits, targets).cross_fitted
    logits[7] *= -100
    changed = (calibration.fit(logits, targets).cross_fitted != before)[:, 0]
    same_fold = torch.arange(30) % calibration.FOLDS == 7
    assert torch.equal(changed, ~same_fold)


def test_it_stays_1_if_that_does_not_help_on_other_photos_or_for_few():
    logits = torch.tensor([[2.0, 0]]).repeat(40, 1)
    targets = (torch.arange(40) % 10 == 3).long()  # one fold has all the mistakes
    assert cross_entropy(logits / 0.9, targets) < cross_entropy(logits, targets)
    assert calibration.fit(logits, targets).temperature == 1
    logits, targets = drawn(3, photos=19)
    assert calibration.fit(logits, targets).temperature == 1


def test_photos_that_are_all_correct_do_not_make_answers_certain():
    logits, targets = torch.tensor([[1.0, 0]]).repeat(30, 1), torch.zeros(30).long()
    found = calibration.fit(logits, targets).temperature
    confidence = (logits / found).softmax(1)[0, 0].item()
    assert 0.95 < confidence < 1 - 1 / 100
