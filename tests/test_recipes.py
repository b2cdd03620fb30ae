import math
from pathlib import Path

import pytest
import torch
from small import run, same, split_folder, weights

import train
from simplestack.training import engine, model
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.recipe import RECIPES


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("torch"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split_folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture(autouse=True)
def offline_weights(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(torch_home))


@pytest.fixture(scope="module")
def frozen(torch_home: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(torch_home))
        return run(tmp_path_factory.mktemp("frozen") / "a.ckpt", "--data-dir", photos, "--freeze")


def body(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if ".fc." not in name}


def statistics(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if "running" in name}


def test_freeze_leaves_the_features_as_they_were(frozen: Checkpoint) -> None:
    assert same(body(frozen.last), body(model.pretrained(2).state_dict()))


def test_freeze_learns_to_tell_the_classes_apart(frozen: Checkpoint) -> None:
    assert frozen.best_accuracy == 1


def test_a_frozen_run_is_epoch_0(frozen: Checkpoint) -> None:
    assert [row["epoch"] for row in frozen.history] == [0]


def test_fine_tuning_changes_the_features_but_not_the_statistics(
    tmp_path: Path, photos: Path, frozen: Checkpoint
) -> None:
    tuned = run(tmp_path / "a.ckpt", "--data-dir", photos, "--epochs", 1)
    assert not same(body(tuned.last), body(frozen.last))
    assert same(statistics(tuned.last), statistics(frozen.last))


def test_the_tutorials_recipe_starts_without_a_probe(tmp_path: Path, photos: Path) -> None:
    state = run(tmp_path / "a.ckpt", "--data-dir", photos, "--epochs", 1, "--recipe", "tutorial")
    assert [row["epoch"] for row in state.history] == [1]


def test_the_tutorials_learning_rate_falls_to_a_tenth_every_7_epochs() -> None:
    rates = [RECIPES["tutorial"].learning_rate(0.001, done, 25) for done in (0, 6.9, 7, 14, 24)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-6])


def test_the_default_learning_rate_decays_to_0() -> None:
    recipe = RECIPES["lp-ft"]
    assert [recipe.learning_rate(1, done, 8) for done in (0, 4, 8)] == pytest.approx([1, 0.5, 0])


def test_from_scratch_takes_the_tutorials_recipe() -> None:
    assert train.parse_arguments(["--from-scratch"]).recipe == "tutorial"


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
def test_arguments_that_make_no_sense_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        train.parse_arguments(arguments)


def test_a_cpu_without_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with engine.Engine(torch.device("cpu")).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_the_probe_is_the_regularised_optimum() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(40, 512), torch.arange(40) % 2
    network = model.Classifier(2)
    network.fit_linear_probe(features, labels)
    loss = torch.nn.functional.cross_entropy(network.resnet.fc(features), labels)
    (loss + model.PROBE_L2 * network.resnet.fc.weight.square().sum()).backward()
    assert network.resnet.fc.weight.grad is not None
    assert math.isclose(float(network.resnet.fc.weight.grad.abs().max()), 0, abs_tol=1e-3)


def test_the_features_mean_the_logits() -> None:
    network = model.Classifier(3).eval()
    photo = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(network.resnet.fc(network.features(photo)), network(photo), atol=1e-4)
