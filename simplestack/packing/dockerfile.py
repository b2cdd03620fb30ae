"""What the image is made of: BentoML's Dockerfile, patched to what Heroku asks for."""

import re
from pathlib import Path

from simplestack.serving.errors import StackError

CHANGES = {
    """\
RUN { command -v uv …
ENV PATH=/app/.venv/bin:${PATH}
""": """\
# Changed: no uv, and no virtual environment: the image's own Python is there for nothing else.
""",
    """\
RUN if [ -d ./src ]; …
    fi; uv --directory $INSTALL_ROOT pip install -r $BENTO_PATH/env/python/requirements.txt
""": """\
# Changed: plain pip, and byte code only of what serving imports, which keeps the image small.
RUN pip install --no-cache-dir --no-compile -r ./env/python/requirements.txt && \\
    python -c "import gunicorn.workers.gasgi, gunicorn.app.wsgiapp" && \\
    python -c "import bentoml, onnxruntime, _bentoml_impl.server.app"
""",
    """\
EXPOSE 3000
""": """\
# Changed: Heroku ignores EXPOSE, and says in $PORT where it is to be.
# EXPOSE 3000
""",
    """\
EXPOSE 3001
""": """\
# Changed: there is nothing: /metrics is served on $PORT too.
# EXPOSE 3001
""",
    """\
ENTRYPOINT [ "/home/bentoml/bento/env/docker/entrypoint.sh" ]
""": """\
# Changed: it starts `bentoml serve`, which writes to the home of a user that Heroku doesn't use.
# ENTRYPOINT [ "/home/bentoml/bento/env/docker/entrypoint.sh" ]

# Added: gunicorn on $PORT, once the settings are known to be good. `exec`, so that SIGTERM reaches
# gunicorn, which finishes what it has begun, and not a shell that ignores it.
CMD cd src && python -m simplestack.serving.settings && exec gunicorn --bind "0.0.0.0:${PORT:-5000}"
""",
}
"""What is changed in BentoML's Dockerfile: lines before, and after. "…" stands for any text."""

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

    Raises StackError if it doesn't have the lines of each change exactly once.
    """
    for before, after in CHANGES.items():
        pattern = re.escape(before).replace("…", r"[\s\S]*?")
        found = re.findall(f"^{pattern}", dockerfile, re.MULTILINE)
        if len(found) != 1:
            raise StackError(
                f"BentoML's Dockerfile has the lines {before!r} {len(found)} times, not once:"
                " install the BentoML in requirements.txt, or adapt packing/dockerfile.py to it"
            )
        dockerfile = dockerfile.replace(found[0], after)
    return dockerfile.strip() + "\n"
