"""The recipes: what is trained, and how fast. On ResNet-18 itself."""

import pytest
import torch
from trainings import train_in_process, write_weights

from simplestack.training import model
from simplestack.training.recipes import RECIPES


def changed(weights, first):
    """Return which stages and head have other weights, and whether batch norms' statistics do."""
    names = {k.split(".")[1] for k in first if not torch.equal(weights[k], first[k])}
    return names, any(not torch.equal(weights[k], first[k]) for k in first if "running" in k)


def test_freeze_trains_the_head_and_fine_tuning_two_stages_but_no_statistics(
    photos, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(write_weights(tmp_path / "torch")))
    first = model.pretrained(2).state_dict()
    frozen, tuned = (
        train_in_process(tmp_path / f"{i}.ckpt", "--data-dir", photos, "--epochs", i)
        for i in (0, 1)
    )
    assert changed(frozen.last, first) == ({"fc"}, False)
    assert ([row["epoch"] for row in frozen.history], frozen.best_row["val_accuracy"]) == ([0], 1)
    assert changed(tuned.last, first) == ({"layer3", "layer4", "fc"}, False)


@pytest.mark.usefixtures("small")
def test_the_tutorials_recipe_trains_all_of_it_without_a_linear_probe(tmp_path, photos):
    options = ("--data-dir", photos, "--epochs", 1, "--recipe", "tutorial")
    state = train_in_process(tmp_path / "a.ckpt", *options)
    assert [row["epoch"] for row in state.history] == [1]
    stages = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}
    assert changed(state.last, model.pretrained(2).state_dict()) == (stages, True)


def test_the_learning_rate_falls_to_a_tenth_every_7_epochs_in_the_tutorial_else_to_0():
    tutorial, default = RECIPES["tutorial"], RECIPES["lp-ft"]
    scales = [tutorial.lr_scale(done, 25) for done in (0, 6.9, 7, 14, 24)]
    assert scales == pytest.approx([1, 1, 0.1, 0.01, 0.001])
    assert [default.lr_scale(done, 8) for done in (0, 4, 8)] == pytest.approx([1, 0.5, 0])
