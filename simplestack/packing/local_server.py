"""Start a packed Bento with `bentoml serve`, wait until it is ready, and stop it again."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

import requests

from simplestack.serving import settings
from simplestack.serving.errors import StackError, printable

HOST = "127.0.0.1"
LAST_LINES = 20  # of a log, that are shown
READY_WITHIN = 120  # seconds; a cold disk or a busy machine can need many of them


def session() -> requests.Session:
    """Return a client that ignores proxy settings, since they rarely exempt HOST."""
    client = requests.Session()
    client.trust_env = False
    return client


def free_port() -> int:
    """Return a TCP port that nothing listens on."""
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def check_port(port: int) -> None:
    """Raise StackError if another program listens on a port."""
    with socket.socket() as client:
        if client.connect_ex((HOST, port)) == 0:
            raise StackError(
                f"port {port} is taken by another program: stop that one, or choose another port,"
                " as in PORT=5001 make run"
            )


@contextmanager
def serve(bento: str, port: int = 0, **environment: str) -> Iterator[str]:
    """Serve a Bento, given by tag or path, on a port (0: any free one) and yield the URL.

    Raises StackError with the end of the server's log if it doesn't become ready.
    """
    port = port or free_port()
    with tempfile.NamedTemporaryFile("w+") as log, start(bento, port, log, **environment):
        yield f"http://{HOST}:{port}"


@contextmanager
def start(
    bento: str, port: int, log: IO[str], **environment: str
) -> "Iterator[subprocess.Popen[bytes]]":
    """Serve a Bento and yield the process once it is ready. Raises StackError if it never is."""
    server = subprocess.Popen(
        [sys.executable, "-m", "bentoml", "serve", bento, "--host", HOST, "--port", str(port)],
        env={**os.environ, "BENTOML_DO_NOT_TRACK": "True", **environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # or Ctrl-C would reach it twice, once from the terminal
    )
    try:
        if not _becomes_ready(server, f"http://{HOST}:{port}"):
            show_end(log)
            raise StackError("the packed service doesn't start: see its log above")
        yield server
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def show_end(log: IO[str]) -> None:
    """Print the last lines of a server's log."""
    for line in Path(log.name).read_text(errors="replace").splitlines()[-LAST_LINES:]:
        print(printable(line), file=sys.stderr)


def _becomes_ready(server: "subprocess.Popen[bytes]", url: str) -> bool:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(requests.RequestException):  # it doesn't listen yet
            if session().get(f"{url}/readyz", timeout=5).ok:
                return True
        time.sleep(0.1)
    return False


def predict(url: str, image: Path) -> str:
    """Post an image to /predict and return the answer, a line of JSON without its end.

    Raises StackError if the image can't be read or the service rejects it.
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
        raise StackError(f"{image} is rejected: {response.status_code} {response.text.rstrip()}")
    return response.text.rstrip()


def serve_until_ctrl_c(bento: str, image: Path, *lines: str) -> None:
    """Serve a Bento on $PORT, print its prediction for an image and some lines, show requests."""
    port = settings.read().port
    check_port(port)
    try:
        print("starting the server …", flush=True)
        with tempfile.NamedTemporaryFile("w+") as log, start(bento, port, log) as server:
            print(f"{image} → {predict(f'http://{HOST}:{port}', image)}\n", *lines, sep="\n")
            print(f"The page: http://localhost:{port}/  (Ctrl-C stops the server)\n", flush=True)
            show_requests(server, log)
            show_end(log)
            raise StackError("the server has ended: see its log above")
    except KeyboardInterrupt:
        print("\nStopped.")


def show_requests(server: "subprocess.Popen[bytes]", log: IO[str]) -> None:
    """Print a line for each request that a server logs, until it ends."""
    with Path(log.name).open() as lines:
        while server.poll() is None:
            for line in lines:
                if line.startswith("{"):  # others are BentoML's
                    said = json.loads(line)
                    what = (said["method"], said["path"], said["status"], said.get("label", ""))
                    words = " ".join(printable(str(word)) for word in what)
                    print(f"{datetime.now():%H:%M:%S}  {words}  {said['ms']:.0f} ms", flush=True)
            time.sleep(0.2)
