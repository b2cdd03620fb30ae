"""Start a packed Bento with `bentoml serve`, wait until it is ready, and stop it again."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import requests

from simplestack.serving.errors import StackError, printable

HOST = "127.0.0.1"
LAST_LINES = 20  # of the log, printed if the server fails
READY_WITHIN = 120  # seconds; a cold disk or a busy machine is slow


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
                f"port {port} is taken by {listener(port)}: stop that program, or choose another"
                " port, as in PORT=5001 make run"
            )


def listener(port: int) -> str:
    """Return the name and the number of the process that listens on a port, if they are known."""
    with suppress(psutil.Error):  # some systems only tell their administrator
        for socket_ in psutil.net_connections("tcp"):
            if socket_.status == psutil.CONN_LISTEN and socket_.laddr[1:] == (port,):
                return f"{psutil.Process(socket_.pid).name()} (process {socket_.pid})"
    return "another program"


@contextmanager
def serve(bento: str, **environment: str) -> Iterator[str]:
    """Serve a Bento, from its tag or path, on a free port and yield the URL.

    Raises StackError, and prints the end of the server's log, if it doesn't become ready.
    """
    port = free_port()
    url = f"http://{HOST}:{port}"
    with tempfile.NamedTemporaryFile("w+") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", bento, "--host", HOST, "--port", str(port)],
            env={**os.environ, "BENTOML_DO_NOT_TRACK": "True", **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # or Ctrl-C would reach it twice, once from the terminal
        )
        try:
            if not _becomes_ready(server, url):
                for line in Path(log.name).read_text(errors="replace").splitlines()[-LAST_LINES:]:
                    print(printable(line), file=sys.stderr)
                raise StackError("the packed service doesn't start: see its log above")
            yield url
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()


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

    Raises StackError if the service rejects the image.
    """
    headers = {"Content-Type": "image/*"}
    response = session().post(f"{url}/predict", image.read_bytes(), headers=headers, timeout=60)
    if not response.ok:
        raise StackError(f"{image} is rejected: {response.status_code} {response.text.rstrip()}")
    return response.text.rstrip()
