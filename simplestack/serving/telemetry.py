"""A line of JSON in the log for each request, and metrics for /metrics.

Several workers share their metrics in the folder PROMETHEUS_MULTIPROC_DIR, which gunicorn.conf.py
and `bentoml serve` set.
"""

import json
import os
import re
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from starlette.datastructures import Headers, MutableHeaders, State
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLIENT_CLOSED_REQUEST = 499  # as in nginx's log
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
MAX_PATH = 200  # characters of a path in the log

REQUESTS = Counter("http_requests", "Requests answered.", ["path", "status"])
REQUEST_SECONDS = Histogram(
    "http_request_duration_seconds", "Time from request to answer.", ["path"]
)
STEP_SECONDS = Histogram(
    "step_seconds",
    "Time of a step within a prediction.",
    ["step"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
ANSWERS = Counter("answers", "Answers by label.", ["label"])
UNLIKE = Counter("unlike_answers", "Answers to photos that are unlike those of training.")
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
CONFIDENCE = Histogram("answer_confidence", "Confidence of the answers.", buckets=SHARES)
SIMILARITY = Histogram("answer_similarity", "Similarity to the training photos.", buckets=SHARES)
SANDBOXED = Gauge("decoders_sandboxed", "1 if they are, else 0.", multiprocess_mode="livemin")
IN_PROGRESS = Gauge("http_requests_in_progress", "Requests in flight.", multiprocess_mode="livesum")


class Telemetry:
    """ASGI middleware that counts, times and logs the requests."""

    def __init__(self, app: ASGIApp, paths: Collection[str], probes: Collection[str]) -> None:
        """Count each of `paths` by name, all other paths as "other", and `probes` not at all."""
        self.app, self.paths, self.probes = app, paths, probes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, then count, time and log it."""
        if scope["type"] == "lifespan":
            for path in (*self.paths, "other"):
                REQUESTS.labels(path, 200)
                REQUEST_SECONDS.labels(path)
            reserve()
        if scope["type"] != "http" or scope["path"] in self.probes:
            return await self.app(scope, receive, send)
        started = time.perf_counter()
        routers_id = Headers(scope=scope).get("x-request-id", "")
        record: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": routers_id if REQUEST_ID.fullmatch(routers_id) else uuid.uuid4().hex,
            "method": scope["method"],
            "path": scope["path"][:MAX_PATH],
            "status": CLIENT_CLOSED_REQUEST,
            "bytes": 0,  # of the body
        }

        async def receive_and_count() -> Message:
            message = await receive()
            record["bytes"] += len(message.get("body", b""))
            return message

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record["status"] = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = record["id"]
            await send(message)

        state = {**scope.get("state", {}), "record": record}
        try:
            with IN_PROGRESS.track_inprogress():
                await self.app({**scope, "state": state}, receive_and_count, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            path = scope["path"] if scope["path"] in self.paths else "other"
            REQUESTS.labels(path, record["status"]).inc()
            REQUEST_SECONDS.labels(path).observe(seconds)
            if "label" in record:
                ANSWERS.labels(record["label"]).inc()
                CONFIDENCE.observe(record["confidence"])
                SIMILARITY.observe(record["similarity"])
                UNLIKE.inc(bool(record["unlike"]))
            # In one write, as all workers write to the same stream.
            print(json.dumps({**record, "ms": round(1000 * seconds, 2)}) + "\n", end="", flush=True)


@contextmanager
def timed(state: State, step: str) -> Iterator[None]:
    """Measure a step of a prediction, in ms for the request's record, in seconds for /metrics."""
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    state.record[f"{step}_ms"] = round(1000 * seconds, 2)
    STEP_SECONDS.labels(step).observe(seconds)


def reserve() -> None:
    """Allocate the disk space of this worker's metrics files, if there are several workers.

    The files are sparse and mapped into memory: on a full disk, writing to them would kill the
    process.
    """
    IN_PROGRESS.inc(0)  # creates the last but one of the files
    SANDBOXED.inc(0)
    folder = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", os.devnull))
    for path in folder.glob(f"*_{os.getpid()}.db"):
        with path.open("r+b") as file:
            file.write(path.read_bytes())


def metrics(_: Request) -> Response:
    """Return the metrics of all workers, or of the only one, in Prometheus' text format."""
    registry = REGISTRY
    # If a host has emptied /tmp, only the metrics of this worker are left.
    if Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", os.devnull)).is_dir():
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
