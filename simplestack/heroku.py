"""What the image is made of: BentoML's Dockerfile, patched to what Heroku asks for."""

import shlex
import sys
from pathlib import Path
from typing import Any

from simplestack import StackError

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
IMAGE: dict[str, Any] = {
    "base_image": f"python:{PYTHON}-slim",
    "distro": "",  # with a `distro` BentoML installs a compiler and git
    "commands": [
        f"printf '%s\\n' {shlex.join(UV)} > /usr/local/bin/uv && chmod +x /usr/local/bin/uv",
        # Debian 13 closes it to other users, and Heroku runs the image as one.
        "chmod 755 /home/bentoml",
    ],
}
"""What BentoML makes the image of: the arguments of `bentoml.images.Image`."""

ENVS: list[Any] = [
    # glibc otherwise keeps what loading the model needed for a moment: 90 MB a worker. With less
    # than this it would give back, and ask for again, what every picture needs.
    {"name": "MALLOC_TRIM_THRESHOLD_", "value": "16777216"},
    {"name": "MALLOC_MMAP_THRESHOLD_", "value": "4194304"},
    {"name": "MALLOC_ARENA_MAX", "value": "2"},
    # ONNX Runtime otherwise reports its starts to its makers.
    {"name": "ORT_DISABLE_TELEMETRY", "value": "1"},
]

REASONS = {
    "EXPOSE 3000": "Heroku ignores EXPOSE, and says in $PORT where it is to be.",
    "EXPOSE 3001": "there is nothing: /metrics is served on $PORT too.",
    'ENTRYPOINT [ "/home/bentoml/bento/env/docker/entrypoint.sh" ]': (
        "it starts `bentoml serve`, which writes to the home of a user that Heroku doesn't use."
    ),
}
"""The lines of the generated Dockerfile that are commented out, and why."""

CMD = """\
# Changed for Heroku: gunicorn on $PORT, once the settings are known to be good. `exec`, so that
# SIGTERM reaches gunicorn, which finishes what it has begun, and not a shell that ignores it.
CMD cd src && python -m simplestack.settings && exec gunicorn --bind "0.0.0.0:${PORT:-5000}"
"""


# So that Heroku builds the image itself from what is pushed to it by git.
HEROKU_YML = """\
build:
  docker:
    web: Dockerfile
"""


def prepare(saved_path: Path) -> None:
    """Make a Bento one that Heroku can build and run: a Dockerfile, and files that all can read."""
    generated = saved_path / "env" / "docker" / "Dockerfile"
    (saved_path / "Dockerfile").write_text(patch(generated.read_text()))
    (saved_path / "heroku.yml").write_text(HEROKU_YML)
    for path in saved_path.rglob("*"):  # the model store keeps its folders to their owner
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))


def patch(dockerfile: str) -> str:
    """Make BentoML's generated Dockerfile one for Heroku.

    Raises StackError where it doesn't have each of the lines that are to be changed exactly once.
    """
    lines = dockerfile.rstrip().splitlines()
    for line, reason in REASONS.items():
        if lines.count(line) != 1:
            raise StackError(
                f"BentoML's Dockerfile has the line {line!r} {lines.count(line)} times, not once:"
                " install the BentoML in requirements.txt, or adapt simplestack/heroku.py to it"
            )
        at = lines.index(line)
        lines[at : at + 1] = [f"# Changed for Heroku: {reason}", f"# {line}"]
    return "\n".join([*lines, "", CMD])
