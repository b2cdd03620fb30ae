"""Start a packed Bento as people do, with `bentoml serve`, wait for it, and stop it again."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from simplestack.serving import settings
from simplestack.serving.errors import StackError

HOST = "127.0.0.1"
READY_WITHIN = 120  # seconds; a cold disk and a busy machine take a good part of it


def session() -> requests.Session:
    """Return a client that no proxy keeps from reaching HOST."""
    client = requests.Session()
    client.trust_env = False
    return client


def free_port() -> int:
    """Find a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(bento: str, port: int = 0, **environment: str) -> Iterator[str]:
    """Serve a Bento, named by its tag or path, on a port (0: a free one); return the URL.

    Raises StackError with the end of the server's log where it doesn't get ready.
    """
    port = port or free_port()
    url = f"http://{HOST}:{port}"
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", bento, "--host", HOST, "--port", str(port)],
            env={**os.environ, "BENTOML_DO_NOT_TRACK": "True", **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches it through us, once
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
            if session().get(f"{url}/readyz", timeout=5).ok:
                return True
        except requests.RequestException:  # not yet
            pass
        time.sleep(0.1)
    return False


def predict(url: str, image: Path) -> str:
    """Post an image to /predict, as the README's curl does, and return the answer's body.

    Raises StackError if it can't be read, or the service refuses it.
    """
    headers = {"Content-Type": "image/*"}
    if token := os.environ.get("API_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    try:
        body = image.read_bytes()
    except OSError as error:
        raise StackError(f"can't read {image} ({error.strerror}): name a photo") from error
    response = session().post(f"{url}/predict", body, headers=headers, timeout=60)
    if not response.ok:
        raise StackError(f"{image} is refused: {response.status_code} {response.text}")
    return response.text


def check_port(port: int) -> None:
    """Raise StackError where somebody listens on a port already."""
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise StackError(
                f"port {port} is taken by another program: stop that one, or choose another port,"
                " as in PORT=5001 make run"
            )


def stop_as_ctrl_c_does() -> None:
    """Let SIGTERM and a closed terminal end this program as Ctrl-C does, and its server with it."""
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)


def port() -> int:
    """Return the port that people are to find the service on: PORT, or 5000."""
    return settings.read().port


def serve_until_ctrl_c(bento: str, image: Path) -> None:
    """Serve a Bento, print its prediction for an image, and stay up."""
    stop_as_ctrl_c_does()
    check_port(port())
    try:
        with serve(bento, port()) as url:
            print(f"{image} → {predict(url, image)}")
            print(f"\nThe page: http://localhost:{port()}/  (Ctrl-C stops the server)", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        print("\nStopped.")
