"""The recipes: what is trained, and how fast. On ResNet-18 itself."""

from pathlib import Path

import pytest
import torch
from trainings import same_weights, train_in_process, write_weights

from simplestack.training import model
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.recipes import RECIPES

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def states(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """A run of the head alone and one of an epoch more; and what they start from."""
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(write_weights(folder / "torch")))
        first = Checkpoint([], {}, {}, "", {}, last=model.pretrained(2).state_dict())
        runs = {
            name: train_in_process(folder / f"{name}.ckpt", "--data-dir", photos, "--epochs", i)
            for i, name in enumerate(("frozen", "tuned"))
        }
    return {"first": first, **runs}


def stages(weights: Weights, *names: str) -> Weights:
    return {k: v for k, v in weights.items() if k.removeprefix("resnet.").startswith(names)}


STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


def test_freeze_trains_only_the_head(states: dict[str, Checkpoint]) -> None:
    first, frozen = states["first"].last, states["frozen"].last
    assert same_weights(stages(frozen, *STAGES), stages(first, *STAGES))
    assert not same_weights(stages(frozen, "fc"), stages(first, "fc"))


def test_freeze_learns_to_tell_the_classes_apart(states: dict[str, Checkpoint]) -> None:
    assert states["frozen"].best_accuracy == 1


def test_a_frozen_run_is_epoch_0(states: dict[str, Checkpoint]) -> None:
    assert [row["epoch"] for row in states["frozen"].history] == [0]


def test_fine_tuning_changes_the_last_two_stages_but_no_statistics(
    states: dict[str, Checkpoint],
) -> None:
    first, tuned = states["first"].last, states["tuned"].last
    assert same_weights(stages(tuned, *STAGES[:4]), stages(first, *STAGES[:4]))
    for name in ("layer3", "layer4"):
        assert not same_weights(stages(tuned, name), stages(first, name))
    statistics = {name for name in first if "running" in name}
    assert all(torch.equal(tuned[name], first[name]) for name in statistics)


@pytest.mark.usefixtures("small")
def test_the_tutorials_recipe_trains_all_of_it_without_a_linear_probe(
    tmp_path: Path, photos: Path
) -> None:
    options = ("--data-dir", photos, "--epochs", 1, "--recipe", "tutorial")
    state = train_in_process(tmp_path / "a.ckpt", *options)
    assert [row["epoch"] for row in state.history] == [1]
    first = model.pretrained(2).state_dict()
    for name in STAGES:
        assert not same_weights(stages(state.last, name), stages(first, name))
    assert not torch.equal(state.last["resnet.bn1.running_mean"], first["resnet.bn1.running_mean"])


def test_the_tutorials_learning_rate_falls_to_a_tenth_every_7_epochs() -> None:
    scales = [RECIPES["tutorial"].lr_scale(done, 25) for done in (0, 6.9, 7, 14, 24)]
    assert scales == pytest.approx([1, 1, 0.1, 0.01, 0.001])


def test_the_default_learning_rate_decays_to_0() -> None:
    recipe = RECIPES["lp-ft"]
    assert [recipe.lr_scale(done, 8) for done in (0, 4, 8)] == pytest.approx([1, 0.5, 0])
