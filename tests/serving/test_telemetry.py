"""The log and the metrics."""

import asyncio
import json
import sys

import pytest
from helpers import metrics
from starlette.middleware.exceptions import ExceptionMiddleware

from simplestack.serving.responses import HANDLERS
from simplestack.serving.telemetry import SHARES, Telemetry


@pytest.fixture
def logged(capsys):
    """Return a function that finds the log line of an answer."""

    def find(answer):
        records = [json.loads(x) for x in capsys.readouterr().out.splitlines() if x[:1] == "{"]
        (record,) = (x for x in records if x.get("id") == answer.headers["x-request-id"])
        return record

    return find


def test_a_prediction_is_one_line_of_the_log(client, logged, photo):
    answer = client.post("/predict", content=photo.read_bytes())
    record = logged(answer)
    for key in ("label", "confidence", "similarity", "unlike"):
        assert record[key] == answer.json()[key]
    assert record["bytes"] == photo.stat().st_size
    assert record["ms"] > record["decode_ms"] + record["inference_ms"] > 0


def test_a_rejection_is_one_line_of_the_log(client, logged):
    record = logged(client.post("/predict", content=b"junk"))
    assert list(record) == ["time", "id", "method", "path", "status", "bytes", "ms"]
    assert list(record.values())[2:6] == ["POST", "/predict", 400, 4]


@pytest.mark.parametrize(
    ("sent", "kept"), [("from-router.1", True), ('"}', False), ("", False), ("a" * 65, False)]
)
def test_a_valid_id_of_a_router_is_kept(client, sent, kept):
    answer = client.get("/", headers={"X-Request-ID": sent})
    assert (answer.headers["x-request-id"] == sent) is kept


def test_a_path_neither_forges_a_line_of_the_log_nor_fills_it(client, logged):
    assert logged(client.get("/%0A%7B%22status%22:200%7D"))["path"] == '/\n{"status":200}'
    assert logged(client.get(f"/{'a' * 1000}"))["path"] == f"/{'a' * 199}"


def test_a_prediction_and_its_steps_are_counted_and_timed(client, photo):
    before = metrics(client)
    client.post("/predict", content=photo.read_bytes())
    counted = metrics(client) - before
    assert counted["http_requests_total", "/predict", "200"] == 1
    assert counted["http_request_duration_seconds_count", "/predict"] == 1
    assert [counted["step_seconds_count", step] for step in ("decode", "inference")] == [1, 1]
    inference = counted["step_seconds_sum", "inference"]
    assert 0 < inference < counted["http_request_duration_seconds_sum", "/predict"]


@pytest.mark.parametrize("path", ["/predict", "/classify"])
def test_an_answer_is_counted_by_label_confidence_and_similarity(client, photo, path):
    answer, before = client.post("/predict", content=photo.read_bytes()).json(), metrics(client)
    client.post(path, content=photo.read_bytes())
    client.post(path, content=b"junk")
    counted = metrics(client) - before
    assert counted["answers_total", answer["label"]] == 1
    for name in ("confidence", "similarity"):
        assert counted[f"answer_{name}_sum",] == pytest.approx(answer[name])
        for limit in (*SHARES, "+Inf"):
            expected = answer[name] <= float(limit)
            assert counted[f"answer_{name}_bucket", str(limit)] == expected


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux filters system calls")
def test_a_metric_says_that_decoders_are_sandboxed(client, photo):
    client.post("/predict", content=photo.read_bytes())
    assert metrics(client)["decoders_sandboxed",] == 1


def test_made_up_paths_and_probes_add_no_metrics(client):
    before = metrics(client)
    for i in range(20):
        client.get(f"/made-up-{i}")
        client.get("/livez")
    counted = metrics(client) - before
    requests_counted = {key: n for key, n in counted.items() if key[0] == "http_requests_total"}
    assert requests_counted == {("http_requests_total", "404", "other"): 20}


def test_unforeseen_error_is_a_500_with_a_traceback_in_the_log(capsys):
    sent = []

    async def broken(*_):
        raise KeyError("boom")

    async def send(message):
        sent.append(message)

    app = Telemetry(ExceptionMiddleware(broken, handlers=HANDLERS), paths=["/"], probes=[])
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(app(scope, None, send))
    record = json.loads(capsys.readouterr().out)
    assert record["status"] == sent[0]["status"] == 500
    assert record["traceback"].endswith("KeyError: 'boom'\n")
    assert list(json.loads(sent[1]["body"])) == ["error"]
