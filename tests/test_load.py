"""Load and faults: nothing fails but honestly, nobody keeps others from being served."""

import http.client
import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import gunicorn
from fuzz import fuzz, worker_of
from test_operation import numbers
from test_serving import post


@pytest.fixture(scope="module")
def photo(pictures) -> bytes:
    return (pictures / "val" / "ants" / "00.jpg").read_bytes()


@pytest.fixture
def server(bento):
    with gunicorn(bento) as (url, process):
        yield url, process


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=60)


def head(length: int) -> bytes:
    return f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def load(url: str, photo: bytes, clients: int, until: Callable[[], bool]) -> Counter[str]:
    """Post from so many clients that keep their connections; count what came of it."""
    outcomes: Counter[str] = Counter()

    def client() -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        while not until():
            try:
                connection.request("POST", "/predict", photo)
                response = connection.getresponse()
                response.read()
                outcomes[str(response.status)] += 1
            except (OSError, http.client.HTTPException) as error:
                outcomes[type(error).__name__] += 1
                connection.close()
        connection.close()

    at_once(client, clients)
    return outcomes


def at_once(client: Callable[[], None], clients: int) -> None:
    """Run so many clients beside each other, and wait until all have ended."""
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_killed_worker_is_replaced_and_only_what_it_held_is_lost(bento, photo):
    clients, started = 8, "ASGI server listening"
    back: list[float] = []

    def kill_one(process) -> None:
        time.sleep(3)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        killed = time.monotonic()
        while process.log.read_text().count(started) < 3 and time.monotonic() < killed + 10:
            time.sleep(0.01)
        back.append(time.monotonic() - killed)

    with gunicorn(bento, WEB_CONCURRENCY="2") as (url, process):
        killer = threading.Thread(target=kill_one, args=(process,))
        killer.start()
        outcomes = load(url, photo, clients, lambda: not killer.is_alive())
        killer.join()
    assert back[0] <= 3
    lost = sum(outcomes.values()) - outcomes["200"]
    assert 0 < lost <= clients, outcomes


def test_slow_clients_keep_nobody_waiting(server, photo):
    url, _ = server
    # More than a worker has in hand at once; half of them within their headers.
    slow = [connect(url) for _ in range(80)]
    for i, connection in enumerate(slow):
        connection.sendall(head(len(photo))[:-2] if i % 2 else head(len(photo)))
    answered = threading.Event()

    def drip() -> None:
        while not answered.wait(1):
            for connection in slow:
                connection.sendall(b"\xff")

    dripping = threading.Thread(target=drip)
    dripping.start()
    answers = [post(url, photo).status_code for _ in range(20)]
    answered.set()
    dripping.join()
    for connection in slow:
        connection.close()
    assert answers == [200] * 20


def test_bodies_in_hand_have_a_limit_together(bento):
    with gunicorn(bento, MAX_BYTES="100000") as (url, _), ExitStack() as stack:
        uploads = [stack.enter_context(connect(url)) for _ in range(9)]
        for upload in uploads:
            upload.sendall(head(100_000) + b"\0" * 90_000)  # the last bytes never come
            time.sleep(0.2)
        assert uploads[-1].recv(100).startswith(b"HTTP/1.1 503 ")
        assert post(url, b"junk").status_code == 400


def test_idle_connections_keep_nobody_waiting(server, photo):
    url, _ = server
    idle = [connect(url) for _ in range(500)]
    try:
        assert [post(url, photo).status_code for _ in range(20)] == [200] * 20
    finally:
        for connection in idle:
            connection.close()


def test_clients_that_hang_up_leave_nothing_behind(server, photo):
    url, process = server
    worker = worker_of(process.pid)
    post(url, photo)
    files = Path(f"/proc/{worker}/fd")
    before = len(list(files.iterdir()))
    for sent in (b"", head(len(photo))[:20], head(len(photo)), head(len(photo)) + photo[:500]):
        for _ in range(30):
            with connect(url) as connection:
                connection.sendall(sent)
    for _ in range(30):
        with connect(url) as connection:
            connection.sendall(head(len(photo)) + photo)
    deadline = time.monotonic() + 30
    while numbers(url)["http_requests_in_progress",] or len(list(files.iterdir())) > before + 1:
        assert time.monotonic() < deadline, list(files.iterdir())
        time.sleep(0.2)
    assert post(url, photo).status_code == 200


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is missing: apt install strace")
def test_nothing_that_is_sent_breaks_it(bento):
    outcome = fuzz(bento, count=1000, seed=1)
    assert outcome.wrong == []
    assert outcome.connections == []
    assert set(outcome.answers) == {200, 400, 413, 415}
