"""Start a packed Bento as people do, with `bentoml serve`, wait for it, and stop it again."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simplestack import StackError

READY_WITHIN = 120  # seconds; a cold disk and a busy machine take a good part of it


def free_port() -> int:
    """Find a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(bento: str, **environment: str) -> Iterator[str]:
    """Serve a Bento, named by its tag or path, on a free port; give the URL.

    Raises StackError with the end of the server's log where it doesn't get ready.
    """
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "bentoml", "serve", bento, "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1"],
            env={**os.environ, "BENTOML_DO_NOT_TRACK": "True", **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            if not _becomes_ready(server, url):
                log.seek(0)
                raise StackError(f"the packed service doesn't start:\n{log.read()[-2000:]}")
            yield url
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()


def _becomes_ready(server: "subprocess.Popen[bytes]", url: str) -> bool:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):  # noqa: S310
                return True
        except (urllib.error.URLError, OSError):  # not yet
            time.sleep(0.1)
    return False


def predict(url: str, image: Path) -> str:
    """Post an image to /predict, as the README's curl does, and give the answer's body."""
    request = urllib.request.Request(  # noqa: S310
        f"{url}/predict", image.read_bytes(), {"Content-Type": "image/*"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        return str(response.read().decode())
