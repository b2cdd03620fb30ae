"""The photos of a report that were most wrong, and the heat on them."""

import torch
from helpers import PROJECT

from simplestack.report import figures
from simplestack.training import folders
from simplestack.training.dataset import Photos
from simplestack.training.model import Classifier

CLASSES = ["ants", "bees"]


def test_wrong_and_unsure_photos_are_shown_the_worst_first(photos):
    names = folders.split_photos(folders.scan(photos), seed=0)["val"]  # two of ants and two of bees
    val, model = Photos(photos, names, CLASSES, whole=False), Classifier(2).eval()

    def captions(*ants):
        probabilities = torch.tensor([[p, 1 - p] for p in ants])
        return [f.caption for f in figures.worst_photos(model, CLASSES, val, probabilities)]

    assert captions(0.89, 0.95, 0.98, 0.01) == [
        "val/bees/0.png: bees, taken for ants, with a probability of 0.98",
        "val/ants/0.png: ants, correct, with a probability of 0.89",
    ]
    assert captions(0.91, 0.95, 0.01, 0.09) == []


def test_heat_lies_where_the_network_looked():
    cam = torch.zeros(7, 7)
    cam[0, 0] = 1
    shown = figures.heat(torch.zeros(224, 224, 3, dtype=torch.uint8), cam)
    assert shown[5, 5, 0] > 100
    assert shown[200, 200, 0] == 0


def test_the_page_draws_the_heat_in_the_same_colour():
    page = (PROJECT / "simplestack/serving/web/index.html").read_text()
    assert f"[{', '.join(map(str, figures.HEAT))}, {figures.OPACITY} * 255 *" in page
