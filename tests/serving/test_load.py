"""Load and faults: nothing fails silently, and no client keeps others from being served."""

import shutil
import socket
import threading
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import psutil
import pytest
from fuzz import fuzz
from helpers import gunicorn, load, metrics, post


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=60)


def head(length: int) -> bytes:
    return f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def test_a_killed_worker_is_replaced_and_only_what_it_had_in_flight_is_lost(bento, photo):
    clients, started = 8, "ASGI server listening"
    back: list[float] = []

    def kill_one(process) -> None:
        time.sleep(3)
        psutil.Process(process.pid).children()[0].kill()
        killed = time.monotonic()
        while process.log.read_text().count(started) < 3 and time.monotonic() < killed + 10:
            time.sleep(0.01)
        back.append(time.monotonic() - killed)

    with gunicorn(bento, WEB_CONCURRENCY="2") as (url, process):
        killer = threading.Thread(target=kill_one, args=(process,))
        killer.start()
        outcomes = load(url, photo.read_bytes(), clients, lambda: not killer.is_alive())
        killer.join()
    assert back[0] <= 3
    lost = sum(outcomes.values()) - outcomes["200"]
    assert 0 < lost <= clients, outcomes


def test_slow_clients_keep_no_other_client_waiting(gunicorn_url, photo):
    body = photo.read_bytes()
    # More than a worker has in flight at once; half of them within their headers.
    slow = [connect(gunicorn_url) for _ in range(80)]
    for i, connection in enumerate(slow):
        connection.sendall(head(len(body))[:-2] if i % 2 else head(len(body)))
    answered = threading.Event()

    def drip() -> None:
        while not answered.wait(1):
            for connection in slow:
                connection.sendall(b"\xff")

    dripping = threading.Thread(target=drip)
    dripping.start()
    answers = [post(gunicorn_url, body).status_code for _ in range(20)]
    answered.set()
    dripping.join()
    for connection in slow:
        connection.close()
    assert answers == [200] * 20


def test_bodies_in_flight_have_a_limit_together(bento):
    with gunicorn(bento, MAX_BYTES="100000") as (url, _), ExitStack() as stack:
        uploads = [stack.enter_context(connect(url)) for _ in range(9)]
        for upload in uploads:
            upload.sendall(head(100_000) + b"\0" * 90_000)  # the last bytes never come
            time.sleep(0.2)
        assert uploads[-1].recv(100).startswith(b"HTTP/1.1 503 ")
        assert post(url, b"junk").status_code == 400


def test_idle_connections_keep_no_other_client_waiting(gunicorn_url, photo):
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(connect(gunicorn_url))
        answers = [post(gunicorn_url, photo.read_bytes()).status_code for _ in range(20)]
    assert answers == [200] * 20


def test_clients_that_hang_up_leave_nothing_behind(bento, photo):
    body = photo.read_bytes()
    with gunicorn(bento) as (url, process):
        (worker,) = psutil.Process(process.pid).children()
        post(url, body)
        before = worker.num_fds()
        for sent in (b"", head(len(body))[:20], head(len(body)), head(len(body)) + body[:500]):
            hang_up(url, sent)
        hang_up(url, head(len(body)) + body)
        deadline = time.monotonic() + 30
        while metrics(url)["http_requests_in_progress",] or worker.num_fds() > before + 1:
            assert time.monotonic() < deadline, worker.num_fds()
            time.sleep(0.2)
        assert post(url, body).status_code == 200


def hang_up(url: str, sent: bytes) -> None:
    """Connect 30 times, send that much of a request, and close the connection."""
    for _ in range(30):
        with connect(url) as connection:
            connection.sendall(sent)


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is missing: apt install strace")
def test_nothing_that_is_sent_breaks_it(bento):
    outcome = fuzz(bento, count=1000, seed=1)
    assert outcome.wrong == []
    assert outcome.connections == []
    assert set(outcome.answers) == {200, 400, 413, 415}
