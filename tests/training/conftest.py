"""A few photos, and weights that need no download."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import split_folder
from trainings import train_in_process, write_weights


@pytest.fixture(scope="session")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, where torchvision looks for ImageNet's."""
    return write_weights(tmp_path_factory.mktemp("torch"))


@pytest.fixture(scope="module", autouse=True)
def offline_weights(torch_home: Path) -> Iterator[None]:
    """Let torchvision take those weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(torch_home))
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes, which no test changes."""
    return split_folder(tmp_path_factory.mktemp("photos") / "photos <b>")


@pytest.fixture(scope="session")
def tuned(torch_home: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a training of one epoch; its report and TensorBoard's log lie beside it."""
    path = tmp_path_factory.mktemp("tuned") / "a.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(torch_home))
        train_in_process(path, "--data-dir", photos, "--epochs", 1, "--tensorboard")
    return path
