"""Load and faults: nothing fails silently, and no client keeps others from being served."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import psutil
from helpers import connect, metrics, post, wait_until


def head(length):
    return f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def test_slow_and_idle_clients_keep_no_other_client_waiting(gunicorn_url, photo):
    body, answered = photo.read_bytes(), threading.Event()

    def drip(slow):
        while not answered.wait(0.2):
            for connection in slow:
                with suppress(ConnectionError):  # without a whole head, it is closed after 10 s
                    connection.sendall(b"\xff")

    # More than a worker has in flight at once; half of them within their headers.
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        connections = [stack.enter_context(connect(gunicorn_url)) for _ in range(580)]
        slow = connections[:80]
        for i, connection in enumerate(slow):
            connection.sendall(head(len(body))[:-2] if i % 2 else head(len(body)))
        dripping = pool.submit(drip, slow)
        answers = [post(gunicorn_url, body).status_code for _ in range(20)]
        answered.set()
        dripping.result()
    assert answers == [200] * 20


def test_a_connection_without_a_whole_head_is_closed_and_a_slow_body_is_read(gunicorn_url, photo):
    body = photo.read_bytes()
    with ExitStack() as stack:
        idle, within_head, slow = (stack.enter_context(connect(gunicorn_url)) for _ in range(3))
        within_head.sendall(head(len(body))[:-2])
        slow.sendall(head(len(body)) + body[:-1])
        assert [idle.recv(1), within_head.recv(1)] == [b"", b""]
        slow.sendall(body[-1:])
        assert slow.recv(100).startswith(b"HTTP/1.1 200 ")


def test_bodies_in_flight_have_a_limit_together(gunicorn_url):
    size = 10 * 2**20
    with ExitStack() as stack:
        for _ in range(4):
            upload = stack.enter_context(connect(gunicorn_url))
            upload.sendall(head(size) + bytes(size * 9 // 10))  # the last bytes never come
        # Five times the size of one may wait. A client that reads only after sending is told so.
        wait_until(lambda: post(gunicorn_url, bytes(size)).status_code == 503)
        assert post(gunicorn_url, b"junk").status_code == 400


def test_clients_that_hang_up_leave_nothing_behind(gunicorn_url, gunicorn_process, photo):
    body = photo.read_bytes()
    (worker,) = psutil.Process(gunicorn_process.pid).children()
    post(gunicorn_url, body)
    wait_until(lambda: {c.status for c in worker.net_connections()} <= {psutil.CONN_LISTEN, "NONE"})
    before = worker.num_fds()
    whole = head(len(body)) + body
    for sent in (0, 20, len(head(len(body))), len(whole) - len(body) + 500, len(whole)):
        for _ in range(30):
            with connect(gunicorn_url) as connection:
                connection.sendall(whole[:sent])
    wait_until(lambda: metrics(gunicorn_url)["http_requests_in_progress",] == 0)
    wait_until(lambda: worker.num_fds() <= before + 1)
    assert post(gunicorn_url, body).status_code == 200
