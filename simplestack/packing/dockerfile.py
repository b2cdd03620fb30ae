"""The image's Dockerfile: BentoML's own, patched for Heroku."""

import re
from pathlib import Path

from simplestack.files import write_atomically
from simplestack.serving.errors import StackError
from simplestack.serving.settings import Settings

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
# Changed: plain pip, without byte code, most of which would never be used. The base image's pip
# installs only the pinned one, by its hash. Removed: the packages' own tests, the scripts of ONNX
# Runtime that prepare models, and pip, which nothing needs from here on.
RUN grep -A 2 ^pip== ./env/python/requirements.txt | \\
    pip install --no-cache-dir --no-compile -r /dev/stdin && \\
    pip install --no-cache-dir --no-compile -r ./env/python/requirements.txt && \\
    find /usr/local/lib \\( -path '*-packages/*/tests' -o -path '*/onnxruntime/transformers' \\
    -o -path '*-packages/pip' \\) -prune -exec rm -r {} +
""",
    """\
EXPOSE 3000
…
ENTRYPOINT [ "/home/bentoml/bento/env/docker/entrypoint.sh" ]
""": f"""\
# Removed: EXPOSE, as Heroku sets $PORT, and BentoML's entry point, as it starts `bentoml serve`,
# which needs a writable home directory. Heroku's user has none.

# Added: load the app once, which compiles what serving imports, and nothing else.
RUN cd src && python -c "import gunicorn.app.wsgiapp, gunicorn.workers.gasgi" && \\
    python -c "from simplestack.serving.app import app; app()"

USER bentoml

# Added: check the settings, then start gunicorn on $PORT. `exec`, so that SIGTERM reaches gunicorn,
# which finishes the requests in flight, and not a shell that ignores it.
CMD cd src && python -m simplestack.serving.settings && \\
    exec gunicorn --bind "0.0.0.0:${{PORT:-{Settings.port}}}"
""",
}
"""Lines of BentoML's Dockerfile, and their replacements. "…" matches anything."""
HEROKU_YML = "build:\n  docker:\n    web: Dockerfile\n"  # Heroku builds the image after git push


def prepare(saved_path: Path) -> None:
    """Prepare a Bento for Heroku: write its Dockerfile and make its files readable by any user."""
    generated = saved_path / "env" / "docker" / "Dockerfile"
    (saved_path / "heroku.yml").write_text(HEROKU_YML)
    # The Dockerfile comes last, since a Bento that has one is complete.
    with write_atomically(saved_path / "Dockerfile") as file:
        file.write(patch(generated.read_text()).encode())
        for path in saved_path.rglob("*"):  # the model store lets only its owner read
            path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))


def patch(dockerfile: str) -> str:
    """Return BentoML's generated Dockerfile with each of CHANGES made.

    Raises StackError unless it has the lines of each change exactly once.
    """
    for before, after in CHANGES.items():
        pattern = re.escape(before).replace("…", r"[\s\S]*?")
        matches = re.findall(f"^{pattern}", dockerfile, re.MULTILINE)
        if len(matches) != 1:
            raise StackError(
                f"BentoML's Dockerfile has the lines {before!r} {len(matches)} times, not once:"
                " install the BentoML in requirements.txt, or adapt packing/dockerfile.py to it"
            )
        dockerfile = dockerfile.replace(matches[0], after)
    return dockerfile.strip() + "\n"
