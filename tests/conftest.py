"""Real files, a real BentoML store in a temporary home, real servers; built once a session."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import gunicorn, python
from playwright.sync_api import Browser, sync_playwright

from simplestack.packing import local_server
from simplestack.packing.page_check import CHROMIUM
from simplestack.training import sample

# A shell that runs the tests in the background ignores it, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("Chromium is not installed")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session", autouse=True)
def bentoml_home(tmp_path_factory) -> Iterator[Path]:
    """Keep BentoML away from the user's own store; let its command be found."""
    home = tmp_path_factory.mktemp("bentoml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.setenv("BENTOML_HOME", str(home))
        patch.setenv("BENTOML_DO_NOT_TRACK", "True")
        yield home


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A data folder with a few drawn pictures."""
    folder = tmp_path_factory.mktemp("pictures") / "data"
    sample.write(folder, {"train": 6, "val": 3})
    return folder


@pytest.fixture(scope="session")
def photo(pictures) -> Path:
    """One of these pictures."""
    return pictures / "val" / "ants" / "00.jpg"


@pytest.fixture(scope="session")
def training(pictures, tmp_path_factory) -> subprocess.CompletedProcess:
    """What train.py did in a short training from scratch."""
    path = tmp_path_factory.mktemp("trained") / "short.ckpt"
    arguments = ("--data-dir", pictures, "--from-scratch", "--epochs", 2, "--output", path)
    result = python("train.py", *arguments)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="session")
def trained(training) -> Path:
    """The checkpoint of that training."""
    return Path(re.search(r"checkpoint: (.+)", training.stdout)[1])


@pytest.fixture(scope="session")
def packing(trained, bentoml_home) -> subprocess.CompletedProcess:
    """What saveToBento.py did with that checkpoint, into a store that has a relative path."""
    home = {"BENTOML_HOME": bentoml_home.name}
    result = python("saveToBento.py", trained, cwd=bentoml_home.parent, **home)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="session")
def bento(packing) -> Path:
    """The saved path of the Bento."""
    return Path(re.search(r"saved path: (.+)", packing.stdout)[1])


@pytest.fixture(scope="session")
def bentoml_url(bento) -> Iterator[str]:
    """The URL of the Bento, served by `bentoml serve`."""
    with local_server.serve(str(bento)) as url:
        yield url


@pytest.fixture(scope="session")
def gunicorn_url(bento) -> Iterator[str]:
    """The URL of the Bento, served as in the container, with one worker."""
    with gunicorn(bento) as (url, _):
        yield url
