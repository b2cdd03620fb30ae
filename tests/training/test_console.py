"""The lines that train.py prints about a run."""

import pytest

from simplestack.training import console
from simplestack.training.checkpoint import Checkpoint

SIXTEEN = "0.8000 (95 % confidence interval 0.584 to 0.919)"  # of 20
NINE = "1.0000 (9 of 9 photos, 95 % confidence interval 0.701 to 1.000)"


def run(*accuracies, photos=153):
    rows = [{"epoch": i, "val_accuracy": x, "val_loss": 1.0} for i, x in enumerate(accuracies)]
    names = {"train": [], "val": [f"ants/{i}.jpg" for i in range(photos)]}
    return Checkpoint(["ants", "bees"], names, {"epochs": 4}, "", {}, history=rows)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (run(148 / 153), "0.9673 (95 % confidence interval 0.926 to 0.986), the linear probe"),
        (run(0.8, 0.5, photos=20), f"{SIXTEEN}, the linear probe (before epoch 1)"),
        (run(0.5, 0.8, photos=20), f"{SIXTEEN}, epoch 1 of 1"),
        (run(1.0, photos=9), f"{NINE}, the linear probe"),
    ],
)
def test_the_best_accuracy_has_an_interval_and_its_epoch_a_name(state, said):
    assert console.format_best(state, state.best_accuracy) == said
