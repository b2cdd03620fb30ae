"""What operators see: the log, the numbers, the API's description, requests from browsers."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import gunicorn, run
from prometheus_client.parser import text_string_to_metric_families
from test_serving import post

from simplestack.packing import local_server


@pytest.fixture(scope="module")
def photo(pictures) -> Path:
    return pictures / "val" / "ants" / "00.jpg"


@pytest.fixture(scope="module")
def server(bento):
    with gunicorn(bento, WEB_CONCURRENCY="2") as (url, process):
        yield url, process


def logged(process, answer: httpx.Response) -> dict:
    """The line of the log about an answer, which is written just after it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        records = [json.loads(x) for x in process.log.read_text().splitlines() if x.startswith("{")]
        for record in records:
            if record.get("id") == answer.headers["x-request-id"]:
                return record
        time.sleep(0.05)
    pytest.fail("there is no such line")


def numbers(url: str) -> Counter[tuple[str, ...]]:
    """The numbers at /metrics, by name and labels."""
    text = httpx.get(f"{url}/metrics").text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return Counter({(s.name, *sorted(s.labels.values())): s.value for s in samples})


def test_a_prediction_is_one_line_of_the_log(server, photo):
    url, process = server
    answer = post(url, photo.read_bytes())
    record = logged(process, answer)
    assert record["label"] == answer.json()["label"]
    assert record["bytes"] == photo.stat().st_size
    assert record["ms"] > record["decode_ms"] + record["inference_ms"] > 0


def test_a_refusal_is_one_line_of_the_log(server):
    url, process = server
    record = logged(process, post(url, b"junk"))
    assert list(record) == ["time", "id", "method", "path", "status", "bytes", "ms"]
    assert list(record.values())[2:6] == ["POST", "/predict", 400, 4]


@pytest.mark.parametrize(
    ("given", "kept"), [("from-router.1", True), ('"}', False), ("", False), ("a" * 65, False)]
)
def test_the_id_of_a_router_is_kept_if_it_is_one(server, given, kept):
    answer = httpx.get(server[0], headers={"X-Request-ID": given})
    assert (answer.headers["x-request-id"] == given) is kept


def test_a_path_cannot_forge_a_line_of_the_log(server):
    url, process = server
    answer = httpx.get(f"{url}/%0A%7B%22status%22:200%7D")
    assert logged(process, answer)["path"] == '/\n{"status":200}'


def test_numbers_of_all_workers_add_up(server, photo):
    url, process = server
    before = numbers(url)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(url, photo.read_bytes()), range(40)))
    for answer in answers:
        logged(process, answer)
    counted = numbers(url) - before
    assert counted["http_requests_total", "/predict", "200"] == 40
    assert counted["http_request_duration_seconds_count", "/predict"] == 40
    assert counted["step_seconds_count", "decode"] == 40
    assert counted["step_seconds_count", "inference"] == 40
    assert (
        0
        < counted["step_seconds_sum", "inference"]
        < counted["http_request_duration_seconds_sum", "/predict"]
    )


def test_made_up_paths_and_probes_add_no_numbers(server):
    url, process = server
    before = numbers(url)
    for i in range(20):
        answer = httpx.get(f"{url}/made-up-{i}")
        httpx.get(f"{url}/livez")
    logged(process, answer)
    counted = {
        key: n for key, n in (numbers(url) - before).items() if key[0] == "http_requests_total"
    }
    assert counted == {("http_requests_total", "404", "other"): 20}


def test_no_page_may_ask_from_elsewhere_unless_it_is_named(bento, photo):
    asking = {"Origin": "https://mine.example", "Access-Control-Request-Method": "POST"}
    with local_server.serve(
        str(bento), CORS_ORIGINS="https://mine.example, https://b.example"
    ) as url:
        allowed = httpx.options(f"{url}/predict", headers=asking)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://mine.example"
        answer = post(url, photo.read_bytes(), headers={"Origin": "https://b.example"})
        assert answer.headers["access-control-allow-origin"] == "https://b.example"
        asking["Origin"] = "https://other.example"
        other = httpx.options(f"{url}/predict", headers=asking)
        assert "access-control-allow-origin" not in other.headers
    with local_server.serve(str(bento)) as url:
        refused = httpx.options(f"{url}/predict", headers=asking)
        assert refused.status_code == 405


def test_generated_requests_find_no_violation_of_the_description(server, tmp_path):
    address = f"{server[0]}/docs.json"
    command = ("schemathesis", "run", address, "--max-examples", "100", "--seed", "1")
    result = run(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
