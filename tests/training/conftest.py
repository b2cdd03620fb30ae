"""A few photos, and a network that is quick to train on them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import split_folder
from trainings import small_network


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let a small network take the place of ResNet-18, and random weights that of ImageNet's."""
    with small_network(tmp_path_factory.mktemp("torch")):
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes, which no test changes."""
    return split_folder(tmp_path_factory.mktemp("photos") / "photos <b>")
