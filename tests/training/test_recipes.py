"""The recipes: what is trained, and how fast."""

from pathlib import Path

import pytest
import torch
from trainings import same_weights, train_in_process

from simplestack.training import checkpoint, model
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.options import merge, parse_arguments
from simplestack.training.recipes import RECIPES


@pytest.fixture(scope="module")
def frozen(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("frozen") / "a.ckpt"
    return train_in_process(path, "--data-dir", photos, "--freeze")


def body(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if ".fc." not in name}


def statistics(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if "running" in name}


def test_freeze_leaves_the_features_as_they_were(frozen: Checkpoint) -> None:
    assert same_weights(body(frozen.last), body(model.pretrained(2).state_dict()))


def test_freeze_learns_to_tell_the_classes_apart(frozen: Checkpoint) -> None:
    assert frozen.best_accuracy == 1


def test_a_frozen_run_is_epoch_0(frozen: Checkpoint) -> None:
    assert [row["epoch"] for row in frozen.history] == [0]


def test_fine_tuning_changes_the_features_but_not_the_statistics(
    tuned: Path, frozen: Checkpoint
) -> None:
    weights = checkpoint.load(tuned).last
    assert not same_weights(body(weights), body(frozen.last))
    assert same_weights(statistics(weights), statistics(frozen.last))


def test_the_tutorials_recipe_starts_without_a_linear_probe(tmp_path: Path, photos: Path) -> None:
    state = train_in_process(
        tmp_path / "a.ckpt", "--data-dir", photos, "--epochs", 1, "--recipe", "tutorial"
    )
    assert [row["epoch"] for row in state.history] == [1]


def test_the_tutorials_learning_rate_falls_to_a_tenth_every_7_epochs() -> None:
    scales = [RECIPES["tutorial"].lr_scale(done, 25) for done in (0, 6.9, 7, 14, 24)]
    assert scales == pytest.approx([1, 1, 0.1, 0.01, 0.001])


def test_the_default_learning_rate_decays_to_0() -> None:
    recipe = RECIPES["lp-ft"]
    assert [recipe.lr_scale(done, 8) for done in (0, 4, 8)] == pytest.approx([1, 0.5, 0])


def test_from_scratch_takes_the_tutorials_recipe() -> None:
    assert merge(parse_arguments(["--from-scratch"]), {}).recipe == "tutorial"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lr", "nan"],
        ["--lr", "inf"],
        ["--batch-size", "0"],
        ["--cache", "-1"],
        ["--recipe", "tutorial", "--freeze"],
        ["--recipe", "lp-ft", "--from-scratch"],
        ["--evaluate"],
    ],
)
def test_arguments_that_make_no_sense_are_rejected(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        merge(parse_arguments(arguments), {})
