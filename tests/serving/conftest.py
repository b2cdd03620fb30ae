"""The service in this process: gate, decoders and model, without a server."""

import warnings
from contextlib import contextmanager
from functools import partial

import bentoml
import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from helpers import fresh_service
from starlette.testclient import TestClient


@contextmanager
def in_process(bento, **settings):
    """Load a Bento with settings of its own, and yield a client that talks to it directly."""
    with pytest.MonkeyPatch.context() as environment, warnings.catch_warnings(action="ignore"):
        for name, value in settings.items():
            environment.setenv(name, value)
        try:
            with fresh_service(), TestClient(bentoml.load(str(bento)).to_asgi()) as client:
                yield client
        finally:  # loading has replaced it by the Bento's own
            BentoMLContainer.model_store.reset()


@pytest.fixture(scope="module")
def client(bento):
    """A client of the service with its default settings."""
    with in_process(bento) as client:
        yield client


@pytest.fixture
def serve(bento):
    """Return a context manager that yields a client of the service with other settings."""
    return partial(in_process, bento)
