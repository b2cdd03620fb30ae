"""A learning curve: the accuracy of linear probes that are fitted to fewer training photos."""

from typing import NamedTuple

import torch
from torch import Tensor

from simplestack.training.checkpoint import Checkpoint
from simplestack.training.metrics import MIN_FOR_PERCENTAGE
from simplestack.training.model import fit_head

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of each class, rounded up
MAX_FITTED = 20_000  # training photos: of more, SHARES of a random sample
MIN_DRAWS, MAX_DRAWS = 3, 6
DRAWN = 5_000  # training photos times draws: of more photos, accuracy depends less on the draw


class Curve(NamedTuple):
    """How accuracy grows with the number of training photos."""

    sizes: list[int]  # training photos, for each of SHARES
    draws: int
    rows: list[tuple[str, list[list[float]]]]  # name; mean, lowest and highest for each size


def measure(state: Checkpoint, labels: Tensor, targets: Tensor) -> Curve:
    """Return the accuracies of all validation photos, and of each class; without those of few.

    The checkpoint has the features, N×512, of the training photos, whose class indices are
    `labels`, then of the validation photos, with `targets`. A smaller draw is part of a larger one.
    """
    training, validation = state.features.split([len(labels), len(targets)])
    draws = min(max(MIN_DRAWS, DRAWN // len(labels)), MAX_DRAWS)
    correct = torch.zeros(draws, len(SHARES), len(targets), dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    for draw in range(draws):
        places = torch.zeros(len(labels))  # of each photo in its class, from 0 to 1
        for label, count in enumerate(labels.bincount().tolist()):
            places[labels == label] = torch.randperm(count, generator=random) / count
        places *= max(1, len(labels) / MAX_FITTED)
        drawn = [places < share for share in SHARES]
        for i, some in enumerate(drawn[: -1 if draw else None]):
            head = fit_head(training[some], labels[some], len(state.classes))
            with torch.inference_mode():
                correct[draw, i] = (head(validation).argmax(1) == targets).double()
    correct[1:, -1] = correct[0, -1]  # all photos are drawn in one way only
    groups = [("all", targets >= 0), *((c, targets == i) for i, c in enumerate(state.classes))]
    rows = []
    for name, group in groups:
        if group.sum() >= MIN_FOR_PERCENTAGE:
            accuracy = correct[..., group].mean(2)  # draws × SHARES
            spread = accuracy.mean(0), accuracy.amin(0), accuracy.amax(0)
            rows.append((name, torch.stack(spread, 1).tolist()))
    return Curve([int(some.sum()) for some in drawn], draws, rows)
