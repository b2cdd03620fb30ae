"""The container: what its image is made of, and the app that gunicorn serves in it."""

import os
import shlex
import sys
from typing import Any

import bentoml
from bentoml.images import Image

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

# BentoML's Dockerfile installs uv, keeps it, and compiles every module of every package. Where a
# `uv` is there already it takes that one: this one fetches the real one for as long as it runs,
# and leaves byte code of what serving imports.
UV = (
    "#!/bin/sh -e",
    "pip install --quiet --no-cache-dir --target /tmp/uv uv",
    'UV_COMPILE_BYTECODE=0 /tmp/uv/bin/uv --no-cache "$@"',
    "rm -r /tmp/uv",
    '[ "$1" = venv ] || python -c "import gunicorn.workers.gasgi, gunicorn.app.wsgiapp"',
    '[ "$1" = venv ] || python -c "import bentoml, onnxruntime, _bentoml_impl.server.app"',
)
IMAGE = Image(
    base_image=f"python:{PYTHON}-slim",
    distro="",  # with a `distro` BentoML installs a compiler and git
    commands=[f"printf '%s\\n' {shlex.join(UV)} > /usr/local/bin/uv && chmod +x /usr/local/bin/uv"],
)
ENVS: list[Any] = [
    # glibc otherwise keeps what loading the model needed for a moment: 90 MB a worker.
    {"name": "MALLOC_TRIM_THRESHOLD_", "value": "131072"},
    {"name": "MALLOC_ARENA_MAX", "value": "2"},
]


def app() -> Any:
    """Load the Bento from BENTO_PATH, with its own copy of the model, and give its ASGI app."""
    service: bentoml.Service[Any] = bentoml.load(os.environ["BENTO_PATH"])
    return service.to_asgi()
