"""What all tests share: drawn pictures, a small checkpoint, and the Bento packed from it."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import PROJECT, cache_folder, make_once, python, split_folder
from playwright.sync_api import Browser, sync_playwright
from xdist.scheduler import LoadScopeScheduling

from bench.page import CHROMIUM
from simplestack.packing import bentos
from simplestack.training import sample

# Files whose tests share the servers of system/conftest.py
SERVED = {
    f"tests/system/test_{name}.py" for name in ("clients", "decoding", "load", "page", "service")
}


class ByFile(LoadScopeScheduling):
    """Gives each file to one process, and all files that share servers to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "served" if file in SERVED else file


def pytest_xdist_make_scheduler(config, log) -> ByFile:
    """Let pytest-xdist use that scheduler."""
    return ByFile(config, log)


# A shell that runs the tests in the background ignores it, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def packed() -> Path:
    """A folder with drawn pictures, what was trained on them and the BentoML store it is in.

    It is kept until something that makes it changes.
    """
    names = ("train.py", "requirements.txt", "tests/conftest.py", "tests/packing/conftest.py")
    makers = bentos.hash_files(*(PROJECT / name for name in names))
    key = f"{bentos.hash_code()}{makers}{sys.version}"
    return make_once(cache_folder("made", key), pack)


def pack(folder: Path) -> None:
    """Draw, train and pack into a folder."""
    sample.write(folder / "data", {"train": 6, "val": 3})
    files = ("--data-dir", folder / "data", "--output", folder / "short.ckpt")
    options = ("--from-scratch", "--epochs", 2, "--device", "cpu", "--save-to-bento", "yes")
    result = python("train.py", *files, *options, BENTOML_HOME=str(folder / "home"))
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep tests away from the user's own settings and BentoML store; let commands be found."""
    home = tmp_path_factory.mktemp("bentoml")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        environment.setenv("BENTOML_HOME", str(home))
        environment.setenv("BENTOML_DO_NOT_TRACK", "True")
        yield home


@pytest.fixture(scope="session")
def pictures(packed: Path) -> Path:
    """A data folder with 6 drawn pictures of each class for training and 3 for validation."""
    return packed / "data"


@pytest.fixture(scope="session")
def photo(pictures: Path) -> Path:
    """One of these pictures."""
    return pictures / "val" / "ants" / "00.jpg"


@pytest.fixture(scope="session")
def trained(packed: Path) -> Path:
    """The checkpoint of two epochs on them."""
    return packed / "short.ckpt"


@pytest.fixture(scope="session")
def model_file(packed: Path) -> Path:
    """The ONNX file packed from it."""
    return packed / "short.onnx"


@pytest.fixture(scope="session")
def bento(packed: Path, environment: Path) -> Path:
    """The saved path of the Bento around that, in this process's own store."""
    shutil.copytree(packed / "home", environment, dirs_exist_ok=True)
    return Path(bentos.latest().path)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with 5 one-coloured pictures of each class for training, 2 for validation."""
    return split_folder(tmp_path_factory.mktemp("photos") / "photos <b>")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let a small network take the place of ResNet-18, and random weights that of ImageNet's."""
    from trainings import small_network  # noqa: PLC0415

    with small_network(tmp_path_factory.mktemp("torch")):
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: apt install chromium")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    arguments.append("--use-fake-device-for-media-stream")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
