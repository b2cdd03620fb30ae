"""Two workers that share a port."""

from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from helpers import gunicorn, load, metrics, post, wait_until

STARTED = "ASGI server listening"


@pytest.fixture(scope="module")
def server(bento):
    with gunicorn(bento, WEB_CONCURRENCY="2") as (url, process):
        wait_until(lambda: process.log.read_text().count(STARTED) == 2)
        yield url, process


def test_metrics_of_all_workers_add_up(server, photo):
    url, process = server
    before = metrics(url)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(url, photo.read_bytes()), range(40)))
    ids = [answer.headers["x-request-id"] for answer in answers]
    log = process.log.read_text
    wait_until(lambda: all(f'"{x}"' in log() for x in ids))  # just after the answer
    counted = metrics(url) - before
    assert counted["http_requests_total", "/predict", "200"] == 40
    steps = [counted["step_seconds_count", step] for step in ("decode", "inference")]
    assert [counted["http_request_duration_seconds_count", "/predict"], *steps] == [40] * 3
    inference = counted["step_seconds_sum", "inference"]
    assert 0 < inference < counted["http_request_duration_seconds_sum", "/predict"]


def test_a_killed_worker_is_replaced_and_only_what_it_had_in_flight_is_lost(server, photo):
    (url, process), clients, asked = server, 8, 0
    started = process.log.read_text().count(STARTED)

    def kill_one():
        wait_until(lambda: asked > 10 * clients)
        workers = psutil.Process(process.pid).children()
        max(workers, key=lambda worker: len(worker.net_connections())).kill()
        wait_until(lambda: process.log.read_text().count(STARTED) > started)

    def done():
        nonlocal asked
        asked += 1
        return killed.done()

    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill_one)
        outcomes = load(url, photo.read_bytes(), clients, done)
    killed.result()
    assert process.log.read_text().count(STARTED) == started + 1
    lost = sum(outcomes.values()) - outcomes["200"]
    assert 0 < lost <= clients, outcomes
