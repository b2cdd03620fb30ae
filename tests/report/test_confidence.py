"""What the report says about confidence."""

import pytest
import torch

from simplestack.report import confidence


@pytest.fixture
def overconfident():
    """Logits that are three times too large, and class indices."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(6000, 3, generator=random)
    return 3 * logits, logits.softmax(1).multinomial(1, generator=random)[:, 0]


def test_a_temperature_improves_overconfident_answers(overconfident):
    measured = confidence.measure(*overconfident)
    assert measured.temperature == pytest.approx(3, rel=0.1)
    assert [name for name, *_ in measured.scores] == ["log loss", "calibration error"]
    for _, without, fitted, (low, high) in measured.scores:
        assert low < fitted - without < high < 0


def test_answers_above_a_threshold_are_counted_with_the_temperature_that_is_served(overconfident):
    logits, targets = overconfident
    rows = {row[0]: row[1:3] for row in confidence.measure(logits, targets).thresholds}
    sure = ((logits / 3).softmax(1).max(1).values >= 0.8).sum().item()
    assert rows[0.8] == pytest.approx((sure, 0.85 * sure), rel=0.1)  # of all logits, 3 × as many
    logits, targets = torch.tensor([[2.0, 0]]).repeat(40, 1), (torch.arange(40) % 8 == 0).long()
    measured = confidence.measure(logits, targets)  # 0.88, and 35 of 40 are correct
    assert measured.temperature == 1
    assert [row[:3] for row in measured.thresholds] == [(0.5, 40, 35), (0.8, 40, 35)]


def test_few_photos_say_nothing_of_confidence(overconfident):
    logits, targets = overconfident
    assert confidence.measure(logits[:19], targets[:19]) is None
