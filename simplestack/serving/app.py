"""The Bento as an ASGI app, for gunicorn."""

import os
from typing import Any

import bentoml


def app() -> Any:
    """Load the Bento in the folder BENTO_PATH; return its ASGI app."""
    service: bentoml.Service[Any] = bentoml.load(os.environ["BENTO_PATH"])
    return service.to_asgi()
