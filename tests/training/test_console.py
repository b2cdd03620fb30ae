"""The lines that train.py prints about a run."""

import pytest

from simplestack.training import console
from simplestack.training.checkpoint import Checkpoint


@pytest.mark.parametrize(
    ("accuracies", "epoch"),
    [
        ([0.8], "the linear probe"),
        ([0.8, 0.5], "the linear probe (before epoch 1)"),
        ([0.5, 0.8], "epoch 1 of 1"),
    ],
)
def test_the_best_accuracy_has_an_interval_and_its_epoch_a_name(accuracies, epoch):
    rows = [{"epoch": i, "val_accuracy": x, "val_loss": 1.0} for i, x in enumerate(accuracies)]
    photos = {"train": [], "val": [f"ants/{i}.jpg" for i in range(20)]}
    state = Checkpoint(["ants", "bees"], photos, {"epochs": 4}, "", {}, history=rows)
    said = f"0.8000 (95 % confidence interval 0.584 to 0.919), {epoch}"
    assert console.format_best(state) == said
