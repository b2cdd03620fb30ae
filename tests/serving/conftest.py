"""The service in this process: gate, decoders and model, without a server."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import bentoml
import pytest
from starlette.testclient import TestClient

Serve = Callable[..., AbstractContextManager[TestClient]]


@contextmanager
def in_process(bento: Path, **settings: str) -> Iterator[TestClient]:
    """Load a Bento with settings of its own, and yield a client that talks to it directly."""
    with pytest.MonkeyPatch.context() as environment, warnings.catch_warnings(action="ignore"):
        for name, value in settings.items():
            environment.setenv(name, value)
        with TestClient(bentoml.load(str(bento)).to_asgi()) as client:
            yield client


@pytest.fixture(scope="module")
def client(bento: Path) -> Iterator[TestClient]:
    """A client of the service with its default settings."""
    with in_process(bento) as client:
        yield client


@pytest.fixture
def serve(bento: Path) -> Serve:
    """Return what yields a client of the service with settings of its own."""
    return partial(in_process, bento)
