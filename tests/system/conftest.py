"""The two servers that tests share, each with the small Bento and default settings."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import gunicorn

from simplestack.packing import local_server


@pytest.fixture(scope="session")
def bentoml_url(bento: Path, tmp_path_factory) -> Iterator[str]:
    """The URL of `bentoml serve`, as saveToBento.py and `make run` start it.

    With a home of its own: the next one in the same home would remove its metrics.
    """
    home = tmp_path_factory.mktemp("served")
    with local_server.serve(str(bento), BENTOML_HOME=str(home)) as url:
        yield url


@pytest.fixture(scope="session")
def gunicorn_process(bento: Path) -> Iterator[subprocess.Popen]:
    """gunicorn with one worker, as the container starts it."""
    with gunicorn(bento) as (url, process):
        process.url = url
        yield process


@pytest.fixture(scope="session")
def gunicorn_url(gunicorn_process: subprocess.Popen) -> str:
    return gunicorn_process.url
