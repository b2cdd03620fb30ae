"""The requests that the gate forwards or rejects: the contract of /predict and /classify."""

import asyncio
import base64
import io
import re
from contextlib import asynccontextmanager
from typing import NamedTuple
from unittest.mock import AsyncMock, MagicMock, Mock

import numpy as np
import pytest
from helpers import check_answer, encode
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from simplestack.serving import images
from simplestack.serving.gate import Gate
from simplestack.serving.responses import HANDLERS
from simplestack.serving.settings import Settings

PHOTO = bytes(range(256)) * 588  # 224×224×3
BUSY = '{"error": "Too many requests at once: try again in a second."}\n'
TOO_LARGE = "The body has more than the 100 bytes that are read: send a smaller image."
NO_EXPLAIN, NO_TOP_K = "explain is neither 0 nor 1.", "top_k is not a number from 1 to 999999."
NEVER = object()  # a chunk that doesn't come
pytestmark = pytest.mark.anyio
PATHS = pytest.mark.parametrize("path", ["/predict", "/classify"])


class Answer(NamedTuple):
    status: int | None  # None without an answer
    sentence: str
    read: int  # bytes of the body
    headers: dict[str, str]


class Door:
    """The gate between stand-ins: a client, a decoder with one photo and an API with one word.

    MAX_BYTES is 100 by default.
    """

    def __init__(self, **settings):
        self.gate = Gate(self.api, Settings(**{"max_bytes": 100} | settings), cores=1)
        self.gate.decoders = self
        self.app = ExceptionMiddleware(self.gate, handlers=HANDLERS)
        self.decoded, self.forwarded, self.open = [], [], asyncio.Event()
        self.open.set()
        self.top_k, self.is_ready = "", True

    async def check(self):
        if not self.is_ready:
            raise HTTPException(503, "No decoder answers.")

    async def decode(self, body, content_type):
        self.decoded.append(bytes(body))
        self.content_type = content_type
        await self.open.wait()
        return PHOTO, self.top_k

    async def api(self, scope, receive, send):
        self.forwarded.append((scope, await receive()))
        await PlainTextResponse("sentence")(scope, receive, send)

    async def ask(self, *chunks, **options):
        """Send a body in chunks, of which None hangs up and NEVER waits."""
        sent, left, read = [], list(chunks), 0

        async def receive():
            nonlocal read
            chunk = left.pop(0) if left else None
            if chunk is None:
                return {"type": "http.disconnect"}
            if chunk is NEVER:
                await asyncio.Event().wait()
            read += len(chunk)
            return {"type": "http.request", "body": chunk, "more_body": bool(left)}

        async def send(message):
            sent.append(message)

        await self.app(scope_of(**options), receive, send)
        sentence = b"".join(message.get("body", b"") for message in sent).decode()
        headers = {k.decode(): v.decode() for k, v in (sent[0]["headers"] if sent else [])}
        return Answer(sent[0]["status"] if sent else None, sentence, read, headers)


def scope_of(path="/predict", method="POST", query="", **headers):
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    known = {"type": "http", "method": method, "path": path, "query_string": query.encode()}
    return {**known, "headers": raw, "state": {"record": {}}}


def error(sentence):
    return f'{{"error": "{sentence}"}}\n'


# Forwarded requests


@PATHS
async def test_the_api_gets_a_form_with_the_photo_and_no_other_header_of_the_body(path):
    door = Door()
    headers = {"content_type": "image/jpeg", "content_length": "4", "content_encoding": "x"}
    answer = await door.ask(b"ab", b"cd", path=path, query="explain=1", x_other="y", **headers)
    assert (answer[:3], door.decoded) == ((200, "sentence", 4), [b"abcd"])
    ((scope, message),) = door.forwarded
    assert (scope["path"], scope["query_string"]) == (path, b"explain=1")
    assert scope["state"]["record"]["decode_ms"] < 1000
    headers = dict(scope["headers"])
    assert (headers.keys(), message["more_body"]) == ({b"x-other", b"content-type"}, False)
    form = rb"multipart/form-data; boundary=[0-9a-f]{32}"  # that cannot be guessed
    assert re.fullmatch(form, headers[b"content-type"])

    async def receive():
        return message

    async with Request(scope, receive).form() as form:
        ((name, file),) = form.multi_items()
        assert (name, file.content_type) == ("image", "image/ppm")
        assert await file.read() == b"P6 224 224 255\n" + PHOTO


@pytest.mark.parametrize(
    ("path", "content_type", "unpacked"),
    [
        ("/predict", "Multipart/Form-Data; boundary=x", "Multipart/Form-Data; boundary=x"),
        ("/classify", "application/json", "application/json"),
        ("/predict", "Application/JSON; charset=x", ""),  # which may be any picture's
    ],
)
async def test_forms_and_json_are_left_to_decoders_and_their_top_k_is_forwarded(
    path, content_type, unpacked
):
    door = Door()
    for door.top_k, expected in (("3", b"top_k=3"), ("", b"explain=1")):
        await door.ask(b"a", path=path, query="explain=1", content_type=content_type)
        assert door.content_type == unpacked
        assert door.forwarded[-1][0]["query_string"] == expected


@pytest.mark.parametrize(
    "top_k", ["0", "-1", "1.5", '"2"', "true", "[]", "1000000", "1&explain=1", "\xff"]
)
async def test_a_decoder_can_only_set_top_k_to_a_number(top_k):
    door = Door()
    door.top_k = top_k
    assert (await door.ask(b"a"))[:2] == (400, error(NO_TOP_K))
    assert door.forwarded == []


@pytest.mark.parametrize("changes", [{"path": "/"}, {"path": "/predict/"}, {"type": "websocket"}])
async def test_other_requests_are_forwarded_unchanged(changes):
    app = AsyncMock()
    await Gate(app, Settings(), cores=1)(
        {**scope_of(), **changes}, receive := object(), send := object()
    )
    app.assert_awaited_once_with({**scope_of(), **changes}, receive, send)


async def test_readyz_is_forwarded_only_if_a_decoder_answers():
    door = Door()
    answers = []
    for door.is_ready in (True, False):
        answers.append((await door.ask(b"", path="/readyz", method="GET"))[:2])
    assert answers == [(200, "sentence"), (503, error("No decoder answers."))]


async def test_decoders_live_as_long_as_the_app():
    order = Mock(decoders=MagicMock(), app=AsyncMock())
    gate = Gate(order.app, Settings(), cores=1)
    gate.decoders = order.decoders
    await gate({"type": "lifespan"}, None, None)
    began, ran, ended = (name for name, *_ in order.mock_calls)
    assert (began, ran, ended) == ("decoders.__aenter__", "app", "decoders.__aexit__")


# Requests that are rejected by their heads


POST, WRONG = "Use POST for {path}, with an image.", {"query": "explain=x", "content_length": "101"}
UNKNOWN = "The token is missing or wrong: send the header 'Authorization: Bearer <token>'."
ASKED = ("top_k=1", "top_k=999999", "explain=0", "explain=1", "other=x")
TOKENS = ("Bearer sesame", "Bearer sésam", "Bearer sésame2", "Bearer  sésame", "Basic sésame")
NONE, NO_NUMBERS = ("sésame", "Bearer ", ""), ("0", "-1", "", "1.5", "1234567", "01", "%D9%A3")


@PATHS
@pytest.mark.parametrize(
    ("token", "options", "status", "sentence"),
    [
        *(("", {"method": x}, 405, POST) for x in ("GET", "PUT", "OPTIONS", "HEAD")),
        *(("", {"query": f"top_k={x}"}, 400, NO_TOP_K) for x in NO_NUMBERS),
        *(("", {"query": f"explain={x}"}, 400, NO_EXPLAIN) for x in ("", "true", "2")),
        ("", {"query": "picture=yes"}, 400, NO_EXPLAIN.replace("explain", "picture")),
        *(("", {"query": x, "authorization": "Bearer ÿ"}, 200, None) for x in ASKED),
        *(("é", {"authorization": x}, 200, None) for x in ("Bearer é", "bearer é", "BEARER é")),
        *(("sésame", {"authorization": x}, 401, UNKNOWN) for x in (*TOKENS, *NONE)),
        *(("sésame", WRONG, 401, UNKNOWN), ("sésame", {**WRONG, "method": "GET"}, 405, POST)),
    ],
)
async def test_the_first_mistake_in_the_head_is_named(path, token, options, status, sentence):
    answer = await Door(api_token=token).ask(b"a", path=path, **options)
    assert answer[:2] == (status, error(sentence.format(path=path)) if sentence else "sentence")
    headers = {401: {"www-authenticate": "Bearer"}, 405: {"allow": "POST"}}.get(status, {})
    assert headers.items() <= answer.headers.items()


# Bodies: how much is read


TENS = [bytes(10)] * 10_000


@pytest.mark.parametrize(
    ("chunks", "options", "status", "read"),
    [
        *(([b""], {}, 200, 0), ([bytes(100)], {}, 200, 100), ([bytes(101)], {}, 413, 101)),
        *(([bytes(100)], {"content_length": "100"}, 200, 100), ([bytes(400)], {}, 413, 400)),
        ([bytes(101)], {"content_length": "101"}, 413, 101),
        (TENS[:40], {}, 413, 400),  # 4 times MAX_BYTES: the client sees the answer, having sent all
        *((TENS[:41], {}, 413, 410), (TENS, {}, 413, 410)),
        (TENS[:40], {"content_length": "400"}, 413, 400),
        (TENS[:40], {"content_length": "401"}, 413, 0),
        (TENS[:11], {"content_length": "110", "expect": "100-continue"}, 413, 0),  # it waits
        (TENS[:10], {"content_length": "100", "expect": "100-continue"}, 200, 100),
    ],
    ids=str,
)
async def test_a_body_may_have_max_bytes_and_a_larger_one_is_read_for_a_while(
    chunks, options, status, read
):
    answer = await Door().ask(*chunks, **options)
    assert answer[:3] == (status, "sentence" if status == 200 else error(TOO_LARGE), read)
    assert (answer.headers.get("connection") == "close") is (status == 413)
    if status == 413 and chunks is not TENS:
        answer = await Door().ask(*chunks, query="top_k=x", **options)
        assert answer[:3] == (400, error(NO_TOP_K), read)


@asynccontextmanager
async def held(door, *bodies):
    """Keep requests with such bodies in flight, one after the other."""
    door.open.clear()
    before = len(door.decoded)
    async with asyncio.TaskGroup() as group:
        tasks = []
        for i, body in enumerate(bodies):
            tasks.append(group.create_task(door.ask(body)))
            while len(door.decoded) <= before + i:
                await asyncio.sleep(0)
        yield
        door.open.set()
    assert {task.result().status for task in tasks} == {200}


@pytest.mark.parametrize(
    ("in_flight", "size", "status"),
    [(3, 100, 200), (4, 50, 200), (4, 51, 503), (5, 25, 200), (5, 26, 503)],
)
async def test_the_fuller_the_buffers_the_smaller_a_body_must_be(in_flight, size, status):
    door = Door()
    async with held(door, *([bytes(100)] * 4 + [bytes(50)])[:in_flight]):
        asked = asyncio.create_task(door.ask(bytes(size)))
        while not asked.done() and len(door.decoded) <= in_flight:
            await asyncio.sleep(0)
        door.open.set()
        assert (await asked)[:2] == (status, "sentence" if status == 200 else BUSY)
    assert door.gate.buffered == 0


async def test_a_body_for_which_there_is_no_room_is_read_to_its_end():
    door = Door()
    async with held(door, *[bytes(100)] * 4):
        answer = await door.ask(bytes(60), bytes(30), bytes(10))
        assert (answer[:3], door.gate.buffered) == ((503, BUSY, 100), 400)


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        ([bytes(60)] * 2, 413),
        ([bytes(100), bytes(400)], 413),
        ([None], None),  # the client hangs up
        ([bytes(60), None], None),
        ([bytes(101), None], None),
    ],
)
async def test_buffered_bytes_count_until_their_request_ends(chunks, status):
    door = Door()
    assert (await door.ask(*chunks)).status == status
    assert door.gate.buffered == 0
    async with held(door, bytes(100), b"abc"):
        assert door.gate.buffered == 103


async def test_more_requests_than_max_requests_are_rejected():
    door = Door(max_requests=2)
    async with held(door, b"a", b"b"):
        answer = await door.ask(b"c")
        assert (*answer[:2], answer.headers["retry-after"]) == (503, BUSY, "1")
    assert (await door.ask(b"d")).status == 200


@pytest.mark.parametrize("chunks", [[b"a"], [b"a", NEVER]], ids=["photo", "body"])
async def test_there_is_an_answer_within_the_timeout(chunks):
    door = Door(timeout=0.01)
    door.open.clear()
    sentence = (
        "There was no answer within 0.01 seconds: try again later, or with a smaller picture."
    )
    assert (await door.ask(*chunks))[:2] == (504, error(sentence))
    assert (door.gate.buffered, door.gate.in_flight.locked()) == (0, False)


# The whole service


def test_an_answer_is_a_line_with_at_most_six_digits_and_on_request_a_map(client, photo):
    paths = ("/predict", "/predict?explain=0", "/predict?explain=1", "/predict?top_k=1")
    plain, same, answer, best = (client.post(x, content=photo.read_bytes()) for x in paths)
    assert answer.headers["content-type"] == "application/json"
    assert answer.text.endswith("}\n")
    assert answer.text.count("\n") == 1
    assert max(map(len, re.findall(r"\.(\d+)", answer.text))) == 6
    explained = answer.json()
    assert [len(row) for row in explained.pop("map")] == [7] * 7
    assert explained == plain.json() == same.json()
    assert list(best.json()["probabilities"]) == [explained["label"]]
    check_answer(explained)


def test_on_request_an_answer_has_the_picture_that_the_network_saw(client, photo):
    answer = client.post("/predict?picture=1", content=photo.read_bytes()).json()
    head, _, data = answer.pop("picture").partition(",")
    assert head == "data:image/jpeg;base64"
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), int)
    assert np.abs(seen - images.read(photo.read_bytes())).mean() < 3
    check_answer(answer)


def test_limits_come_from_the_environment(serve):
    pictures = (encode(Image.new("1", size), "PNG") for size in ((10, 10), (9, 10)))
    with serve(MAX_BYTES="100000", MAX_PIXELS="90") as client:
        bodies = (bytes(100_001), *pictures)
        large, heavy, fine = (client.post("/predict", content=body) for body in bodies)
        assert "100,000 bytes" in large.json()["error"]
        assert "9e-05 million" in heavy.json()["error"]
        assert fine.status_code == 200
