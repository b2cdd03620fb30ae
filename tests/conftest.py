"""Real files, a real BentoML store in a temporary home, a real server; built once a session."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from simplestack.packing import local_server
from simplestack.training import sample

PROJECT = Path(__file__).parent.parent
# Ignored where the tests run in the background, and whatever they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
"""An environment in which nothing outside this machine can be reached."""


def run(
    *command: object, cwd: Path = PROJECT, stdin: int = subprocess.DEVNULL, **environment: str
) -> subprocess.CompletedProcess:
    """Run a command as a person would, without a terminal; return what it printed."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1", **environment},
        stdin=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def python(script: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    """Run one of the project's scripts."""
    return run(sys.executable, PROJECT / script, *arguments, **options)


def error_line(result: subprocess.CompletedProcess) -> str:
    """Return the one line that a user gets when something is wrong, and nothing else."""
    assert result.returncode not in {0, None}, result.stdout
    assert "Traceback" not in result.stderr
    return next(line for line in result.stderr.splitlines() if "error: " in line)


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
def trained(pictures, tmp_path_factory) -> Path:
    """A checkpoint of a short training from scratch."""
    path = tmp_path_factory.mktemp("trained") / "short.ckpt"
    result = python(
        "train.py", "--data-dir", pictures, "--from-scratch", "--epochs", 1, "--output", path
    )
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture(scope="session")
def packing(trained) -> subprocess.CompletedProcess:
    """What saveToBento.py did with that checkpoint."""
    result = python("saveToBento.py", trained)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="session")
def bento(packing) -> Path:
    """The saved path of the Bento."""
    return Path(re.search(r"saved path: (.+)", packing.stdout)[1])


@pytest.fixture(scope="session")
def url(bento) -> Iterator[str]:
    """The address of the served Bento."""
    with local_server.serve(str(bento)) as address:
        yield address


def command(bento: Path) -> str:
    """Return the CMD of a Bento's Dockerfile: what the container starts."""
    return (bento / "Dockerfile").read_text().rpartition("\nCMD ")[2].strip()


@contextmanager
def gunicorn(
    bento: Path, under: tuple[str, ...] = (), **environment: str
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Serve a Bento as the container does, by the Dockerfile's CMD; return the URL and gunicorn.

    `under` names a program to start it with. Its log is the file `log`.
    """
    port = str(local_server.free_port())
    with tempfile.NamedTemporaryFile() as log:
        server = subprocess.Popen(
            [*under, "/bin/sh", "-c", command(bento)],
            cwd=bento,
            env={**os.environ, "BENTO_PATH": str(bento), "PORT": port, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        server.log = Path(log.name)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", server)
            yield f"http://127.0.0.1:{port}", server
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            finally:
                server.kill()


def wait_until_ready(url: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + local_server.READY_WITHIN
    while True:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            assert server.poll() is None, server.log.read_text()
            time.sleep(0.1)


def copy_project(folder: Path) -> Path:
    """Copy the project's files, to run things in that write beside them."""
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.split("\n")
    for name in filter(None, names):
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    return folder
