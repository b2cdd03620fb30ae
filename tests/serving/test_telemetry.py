"""What operators see: the log and the metrics."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from helpers import get, gunicorn, metrics, post
from starlette.middleware.exceptions import ExceptionMiddleware

from simplestack.serving.handlers import HANDLERS
from simplestack.serving.telemetry import Telemetry


@pytest.fixture(scope="module")
def server(bento):
    with gunicorn(bento, WEB_CONCURRENCY="2") as (url, process):
        yield url, process


def logged(process, answer: requests.Response) -> dict:
    """Return the line of the log about an answer, which is written just after it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        records = [json.loads(x) for x in process.log.read_text().splitlines() if x.startswith("{")]
        for record in records:
            if record.get("id") == answer.headers["x-request-id"]:
                return record
        time.sleep(0.05)
    pytest.fail("there is no such line")


def test_a_prediction_is_one_line_of_the_log(server, photo):
    url, process = server
    answer = post(url, photo.read_bytes())
    record = logged(process, answer)
    for key in ("label", "similarity", "unlike"):
        assert record[key] == answer.json()[key]
    assert record["bytes"] == photo.stat().st_size
    assert record["ms"] > record["decode_ms"] + record["inference_ms"] > 0


def test_a_rejection_is_one_line_of_the_log(server):
    url, process = server
    record = logged(process, post(url, b"junk"))
    assert list(record) == ["time", "id", "method", "path", "status", "bytes", "ms"]
    assert list(record.values())[2:6] == ["POST", "/predict", 400, 4]


@pytest.mark.parametrize(
    ("given", "kept"), [("from-router.1", True), ('"}', False), ("", False), ("a" * 65, False)]
)
def test_the_id_of_a_router_is_kept_if_it_is_one(server, given, kept):
    answer = get(server[0], headers={"X-Request-ID": given})
    assert (answer.headers["x-request-id"] == given) is kept


def test_a_path_cannot_forge_a_line_of_the_log(server):
    url, process = server
    answer = get(f"{url}/%0A%7B%22status%22:200%7D")
    assert logged(process, answer)["path"] == '/\n{"status":200}'


def test_metrics_of_all_workers_add_up(server, photo):
    url, process = server
    before = metrics(url)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(url, photo.read_bytes()), range(40)))
    for answer in answers:
        logged(process, answer)
    counted = metrics(url) - before
    assert counted["http_requests_total", "/predict", "200"] == 40
    assert counted["http_request_duration_seconds_count", "/predict"] == 40
    assert counted["step_seconds_count", "decode"] == 40
    assert counted["step_seconds_count", "inference"] == 40
    assert (
        0
        < counted["step_seconds_sum", "inference"]
        < counted["http_request_duration_seconds_sum", "/predict"]
    )


def test_made_up_paths_and_probes_add_no_metrics(server):
    url, process = server
    before = metrics(url)
    for i in range(20):
        answer = get(f"{url}/made-up-{i}")
        get(f"{url}/livez")
    logged(process, answer)
    counted = metrics(url) - before
    requests_counted = {key: n for key, n in counted.items() if key[0] == "http_requests_total"}
    assert requests_counted == {("http_requests_total", "404", "other"): 20}


def test_unforeseen_error_is_a_500_with_a_traceback_in_the_log(capsys):
    async def broken(*_):
        raise KeyError("boom")

    sent: list[dict] = []

    async def send(message):
        sent.append(message)

    app = Telemetry(ExceptionMiddleware(broken, handlers=HANDLERS), paths=["/"], probes=[])
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(app(scope, None, send))
    record = json.loads(capsys.readouterr().out)
    assert record["status"] == sent[0]["status"] == 500
    assert record["traceback"].endswith("KeyError: 'boom'\n")
    assert list(json.loads(sent[1]["body"])) == ["error"]
