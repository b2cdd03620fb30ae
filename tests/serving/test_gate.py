"""What the gate forwards, and what it answers itself: the contract of /predict and /classify."""

import asyncio
import base64
import itertools
import re
from collections.abc import Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import quote

import hostile
import pytest
from helpers import check_answer, encode
from PIL import Image
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from simplestack.serving.errors import DamagedImageError
from simplestack.serving.handlers import HANDLERS
from simplestack.serving.predict import Gate

PHOTO = bytes(range(256)) * 588  # 224×224×3
BUSY = "Too many requests at once: try again in a second."
TOO_LARGE = "The body has more than the 100 bytes that are read: send a smaller image."
UNAUTHORIZED = "The token is missing or wrong: send the header 'Authorization: Bearer <token>'."
NO_TOP_K = "top_k is not a number from 1 to 999999."
NO_EXPLAIN = "explain is neither 0 nor 1."


NEVER = object()  # in place of a chunk that doesn't come


class Answer(NamedTuple):
    status: int | None  # None if there was none
    headers: dict[str, str]
    said: str
    read: int  # bytes of the body


class Door:
    """The gate alone, between a client of its own, a decoder of one photo and an API of one word.

    MAX_BYTES is 100, if nothing else is given.
    """

    def __init__(self, **settings: str) -> None:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in ({"MAX_BYTES": "100"} | settings).items():
                environment.setenv(name, value)
            self.gate = Gate(self.api, cores=1)
        self.gate.decoders = self
        self.app = ExceptionMiddleware(self.gate, handlers=HANDLERS)
        self.decoded: list[bytes] = []
        self.forwarded: list[tuple[dict, dict]] = []
        self.open, self.waiting = asyncio.Event(), 0
        self.open.set()

    async def decode(self, data: bytes) -> bytes:
        self.decoded.append(bytes(data))
        self.waiting += 1
        await self.open.wait()
        return PHOTO

    async def api(self, scope, receive, send) -> None:
        self.forwarded.append((scope, await receive()))
        await PlainTextResponse("said")(scope, receive, send)

    async def ask(self, *chunks: object, more: Iterable[bytes] = (), **options) -> Answer:
        """Send a body in chunks, and `more` that may have no end; None hangs up, NEVER waits."""
        sent, bodies = [], itertools.chain(chunks or (b"",), more, [None])
        left, read = next(bodies), 0

        async def receive() -> dict:
            nonlocal left, read
            if left is None:
                return {"type": "http.disconnect"}
            if left is NEVER:
                await asyncio.Event().wait()
            body, left = left, next(bodies)
            read += len(body)
            more_body = left is not None or None in chunks
            return {"type": "http.request", "body": body, "more_body": more_body}

        async def send(message: dict) -> None:
            sent.append(message)

        await self.app(scope_of(**options), receive, send)
        if not sent:
            return Answer(None, {}, "", read)
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        body = b"".join(message.get("body", b"") for message in sent)
        return Answer(sent[0]["status"], headers, body.decode(), read)


def scope_of(
    path: str = "/predict", method: str = "POST", query: str = "", **headers: str | bytes
) -> dict:
    raw = [
        (name.replace("_", "-").encode(), value.encode() if isinstance(value, str) else value)
        for name, value in headers.items()
    ]
    known = {"type": "http", "method": method, "path": path, "query_string": query.encode()}
    return {**known, "headers": raw, "state": {"record": {}}}


def ask(*chunks: object, settings: dict[str, str] | None = None, **options) -> Answer:
    """Send one request to a gate of its own."""

    async def once() -> Answer:
        return await Door(**settings or {}).ask(*chunks, **options)

    return asyncio.run(once())


def error(sentence: str) -> str:
    return f'{{"error": "{sentence}"}}\n'


# What is forwarded


@pytest.mark.parametrize("path", ["/predict", "/classify"])
def test_the_api_gets_a_form_with_the_photo_and_no_other_header_of_the_body(path):
    async def once() -> None:
        door = Door()
        given = {"content_type": "image/jpeg", "content_length": "4", "content_encoding": "x"}
        answer = await door.ask(b"ab", b"cd", path=path, query="explain=1", x_other="y", **given)
        assert (answer.status, answer.said, answer.read) == (200, "said", 4)
        assert door.decoded == [b"abcd"]
        ((scope, message),) = door.forwarded
        assert (scope["path"], scope["query_string"]) == (path, b"explain=1")
        assert dict(scope["headers"]).keys() == {b"x-other", b"content-type"}
        assert message["more_body"] is False
        assert scope["state"]["record"]["decode_ms"] < 1000

        async def receive() -> dict:
            return message

        async with Request(scope, receive).form() as form:
            ((name, file),) = form.multi_items()
            assert (name, file.content_type) == ("image", "image/ppm")
            assert await file.read() == b"P6 224 224 255\n" + PHOTO

    asyncio.run(once())


def test_the_boundary_of_that_form_cannot_be_guessed():
    async def once() -> str:
        door = Door()
        await door.ask(b"a")
        return dict(door.forwarded[0][0]["headers"])[b"content-type"].decode()

    assert re.fullmatch(r"multipart/form-data; boundary=[0-9a-f]{32}", asyncio.run(once()))


@pytest.mark.parametrize(
    "changes", [{"path": "/"}, {"path": "/predict/"}, {"path": "/predict", "type": "websocket"}]
)
def test_other_requests_are_forwarded_as_they_are(changes):
    async def once() -> None:
        passed = []

        async def app(*given: object) -> None:
            passed.append(given)

        request = ({**scope_of(), **changes}, object(), object())
        await Gate(app, cores=1)(*request)
        assert passed == [request]

    asyncio.run(once())


def test_decoders_live_as_long_as_the_app():
    events = []

    @asynccontextmanager
    async def decoders():
        events.append("started")
        yield
        events.append("ended")

    async def app(*_: object) -> None:
        events.append("app")

    async def once() -> None:
        gate = Gate(app, cores=1)
        gate.decoders = decoders()
        await gate({"type": "lifespan"}, None, None)

    asyncio.run(once())
    assert events == ["started", "app", "ended"]


# What is refused by its head


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", ["/predict", "/classify"])
def test_wrong_method_gets_a_clear_answer(method, path):
    answer = ask(method=method, path=path)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.said == error(f"Use POST for {path}, with an image.")


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("Bearer sésame", 200),
        ("bearer sésame", 200),
        ("BEARER sésame", 200),
        *(("Bearer sesame", 401), ("Bearer sésam", 401), ("Bearer sésame2", 401)),
        *(("Bearer  sésame", 401), ("Basic sésame", 401), ("sésame", 401), ("Bearer", 401)),
        *(("Bearer ", 401), ("", 401), (None, 401)),
    ],
)
def test_a_token_is_asked_for_if_one_is_set(given, status):
    headers = {} if given is None else {"authorization": given}
    answer = ask(b"a", settings={"API_TOKEN": "sésame"}, **headers)
    assert answer.status == status
    if status == 401:
        assert answer.said == error(UNAUTHORIZED)
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("given", ["Bearer sesame", "Basic x", "\xff"])
def test_a_token_that_nobody_asks_for_is_ignored(given):
    assert ask(b"a", authorization=given.encode("latin-1")).status == 200


@pytest.mark.parametrize("path", ["/predict", "/classify"])
@pytest.mark.parametrize("top_k", ["0", "-1", "", "many", "1.5", "1e3", "٣", "1234567", "01"])
def test_top_k_is_not_guessed(path, top_k):
    answer = ask(b"a", path=path, query=f"top_k={quote(top_k)}")
    assert (answer.status, answer.said) == (400, error(NO_TOP_K))


@pytest.mark.parametrize("explain", ["perhaps", "", "true", "2"])
def test_explain_is_not_guessed(explain):
    answer = ask(b"a", query=f"explain={explain}")
    assert (answer.status, answer.said) == (400, error(NO_EXPLAIN))


@pytest.mark.parametrize("query", ["top_k=1", "top_k=999999", "explain=0", "explain=1", "other=x"])
def test_what_may_be_asked_for_is_forwarded(query):
    assert ask(b"a", query=query).status == 200


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"method": "GET", "query": "explain=x", "content_length": "101"}, 405),
        ({"query": "explain=x&top_k=x", "content_length": "101"}, 401),
    ],
)
def test_the_first_mistake_is_named(options, status):
    assert ask(b"a", settings={"API_TOKEN": "sesame"}, **options).status == status


# Bodies: how much is read


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize(
    ("size", "status"), [(0, 200), (99, 200), (100, 200), (101, 413), (400, 413)]
)
def test_a_body_may_have_max_bytes(size, status, announced):
    answer = ask(bytes(size), **({"content_length": str(size)} if announced else {}))
    assert (answer.status, answer.read) == (status, size)
    if status == 413:
        assert answer.said == error(TOO_LARGE)
        assert answer.headers["connection"] == "close"


TENS = [bytes(10)] * 50


@pytest.mark.parametrize(
    ("chunks", "options", "read"),
    [
        (TENS[:40], {}, 400),  # 4 times MAX_BYTES: the client sees the answer once it has sent all
        (TENS[:41], {}, 410),
        (TENS, {}, 410),  # no more
        (TENS[:40], {"content_length": "400"}, 400),
        (TENS[:40], {"content_length": "401"}, 0),
        (TENS[:11], {"content_length": "110", "expect": "100-continue"}, 0),  # it waits
    ],
)
def test_what_is_refused_is_read_on_for_a_while(chunks, options, read):
    answer = ask(*chunks, **options)
    assert (answer.status, answer.said, answer.read) == (413, error(TOO_LARGE), read)
    if "content_length" in options or len(chunks) <= 41:  # known from the start, or no endless one
        answer = ask(*chunks, query="top_k=x", **options)
        assert (answer.status, answer.said, answer.read) == (400, error(NO_TOP_K), read)


def test_an_endless_body_is_not_read_endlessly():
    assert ask(more=itertools.repeat(bytes(10)))[::3] == (413, 410)


def test_an_expected_body_is_read_if_nothing_is_wrong():
    assert ask(b"abc", content_length="3", expect="100-continue")[::3] == (200, 3)


@asynccontextmanager
async def held(door: Door, *bodies: bytes):
    """Keep requests with such bodies in flight, one after the other."""
    door.open.clear()
    waiting = door.waiting
    async with asyncio.TaskGroup() as group:
        tasks = []
        for i, body in enumerate(bodies):
            tasks.append(group.create_task(door.ask(body)))
            while door.waiting <= waiting + i:
                await asyncio.sleep(0)
        yield tasks
        door.open.set()
    assert {task.result().status for task in tasks} == {200}


@pytest.mark.parametrize(
    ("in_flight", "size", "status"),
    [(3, 100, 200), (4, 50, 200), (4, 51, 503), (4, 100, 503), (5, 25, 200), (5, 26, 503)],
)
def test_the_fuller_the_buffers_the_smaller_a_body_must_be(in_flight, size, status):
    async def once() -> None:
        door = Door()
        bodies = [bytes(100)] * 4 + [bytes(50)]
        async with held(door, *bodies[:in_flight]):
            asked = asyncio.create_task(door.ask(bytes(size)))
            while not asked.done() and door.waiting <= in_flight:
                await asyncio.sleep(0)
            door.open.set()
            answer = await asked
            assert answer.status == status
            if status == 503:
                assert (answer.said, answer.headers["retry-after"]) == (error(BUSY), "1")
        assert door.gate.buffered == 0

    asyncio.run(once())


@pytest.mark.parametrize(
    "chunks", [[bytes(60), bytes(60)], [bytes(60), None], [bytes(100), bytes(400)], [b"a"]]
)
def test_what_was_buffered_counts_until_its_request_has_ended(chunks):
    async def once() -> None:
        door = Door()
        for _ in range(20):
            await door.ask(*chunks)
            assert door.gate.buffered == 0
        async with held(door, bytes(100), b"abc"):
            assert door.gate.buffered == 103

    asyncio.run(once())


def test_more_requests_than_max_requests_are_refused():
    async def once() -> None:
        door = Door(MAX_REQUESTS="2")
        async with held(door, b"a", b"b"):
            answer = await door.ask(b"c")
            assert (answer.status, answer.said) == (503, error(BUSY))
            assert answer.headers["retry-after"] == "1"
        assert (await door.ask(b"d")).status == 200

    asyncio.run(once())


@pytest.mark.parametrize("chunks", [[b"a"], [b"a", NEVER]], ids=["photo", "body"])
def test_there_is_an_answer_within_the_timeout(chunks):
    async def once() -> None:
        door = Door()
        door.gate.settings = replace(door.gate.settings, timeout=0.01)
        door.open.clear()
        answer = await door.ask(*chunks)
        assert answer.status == 504
        assert answer.said == error(
            "There was no answer within 0.01 seconds: try again later, or with a smaller picture."
        )
        assert (door.gate.buffered, door.gate.in_flight.locked()) == (0, False)

    asyncio.run(once())


@pytest.mark.parametrize("chunks", [[None], [b"a", None], [b"a" * 101, None]])
def test_a_client_that_hangs_up_gets_no_answer(chunks):
    assert ask(*chunks).status is None


def test_an_error_of_the_decoder_is_the_answer():
    async def once() -> Answer:
        door = Door()

        async def fail(_: bytes) -> bytes:
            raise DamagedImageError("It is damaged.")

        door.gate.decoders = SimpleNamespace(decode=fail)
        return await door.ask(b"a")

    assert asyncio.run(once())[::2] == (400, error("It is damaged."))


# The whole service


def test_an_answer_is_a_line_with_at_most_six_digits(client, photo):
    answer = client.post("/predict", content=photo.read_bytes(), params={"explain": "1"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.text.endswith("}\n")
    assert answer.text.count("\n") == 1
    digits = re.findall(r"\.(\d+)", answer.text)
    assert max(map(len, digits)) == 6


@pytest.mark.parametrize(
    "content_type",
    [
        *("image/jpeg", "image/*", "image/png", "application/octet-stream", None),
        "application/x-www-form-urlencoded",
    ],
)
def test_content_type_doesnt_matter(client, photo, content_type):
    headers = {"Content-Type": content_type} if content_type else {}
    response = client.post("/predict", content=photo.read_bytes(), headers=headers)
    assert response.status_code == 200
    check_answer(response.json())


def test_explain_adds_the_activation_map_or_not(client, photo):
    answers = {
        explain: client.post("/predict", content=photo.read_bytes(), params={"explain": explain})
        for explain in ("0", "1")
    }
    check_answer(answers["0"].json())
    explained = answers["1"].json()
    assert [len(row) for row in explained.pop("map")] == [7] * 7
    assert explained == answers["0"].json()


def test_top_k_names_so_many_classes_the_best_first(client, photo):
    def ask_for(**params: int) -> dict:
        return client.post("/predict", content=photo.read_bytes(), params=params).json()

    answer, both = ask_for(), ask_for(top_k=9)["probabilities"]
    assert ask_for(top_k=1) == {
        **answer,
        "probabilities": {answer["label"]: answer["confidence"]},
    }
    assert list(both) == sorted(both, key=both.get, reverse=True)
    assert both == answer["probabilities"]


def drawn(*size: int) -> bytes:
    return encode(Image.new("1", size), "PNG")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "no image"),
        (b"junk", 400, "not an image"),
        (b"http://localhost:1/x.jpg", 400, "an address, not an image"),
        (b'{"image": "x"}', 400, "JSON, not an image"),
        (base64.b64encode(drawn(100, 100)), 400, "base64, not an image"),
        (b"data:image/png;base64," + base64.b64encode(drawn(9, 9)), 400, "base64, not an image"),
        (b"a.jpg", 400, "the name of a file, not an image: put an @ before it"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 100, 400, "damaged or cut off"),
        (encode(Image.new("RGB", (300, 300)), "JPEG")[:-100], 400, "damaged or cut off"),
        (b"%PDF-1.7", 415, "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "SVG"),
        (b"\0\0\0\x18ftypmp42" + b"\0" * 50, 415, "video"),
        (b"\xff\xd8" + b"\0" * 11_000_000, 413, "10,485,760 bytes"),
        (drawn(10_000, 10_000), 413, "10000×10000"),
        (hostile.compressed_profile(), 413, "too large a profile"),
    ],
    ids=[
        *("empty", "junk", "url", "json", "base64", "data", "name", "header", "cut", "pdf"),
        *("svg", "video", "bytes", "pixels", "profile"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/classify"])
def test_what_is_no_image_gets_a_clear_answer(client, path, body, status, words):
    response = client.post(path, content=body)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]


@pytest.mark.parametrize("kind", ["HEIF", "PPM", "WEBP", "AVIF"])
def test_every_format_gets_the_same_answer(client, photo, kind):
    image = Image.open(photo)
    data = encode(image, kind, **{} if kind == "PPM" else {"quality": 95})
    answer, same = (client.post("/predict", content=x) for x in (data, photo.read_bytes()))
    assert answer.status_code == 200
    assert answer.json()["label"] == same.json()["label"]


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "heic", "tif"])
@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "image/*"])
def test_a_file_that_curl_has_damaged_gets_the_remedy(client, photo, suffix, content_type):
    kind = Image.registered_extensions().get(f".{suffix}", "HEIF")
    left = encode(Image.open(photo), kind).translate(None, b"\r\n\0")  # by curl -d
    answer = client.post("/predict", content=left, headers={"Content-Type": content_type})
    assert answer.status_code == 400
    assert "If curl -d sent it, use curl --data-binary @image.jpg" in answer.json()["error"]


def test_a_picture_with_more_pixels_than_are_read_is_answered_if_its_decoder_reduces_it(client):
    large = encode(Image.new("RGB", (12000, 9000)), "JPEG", quality=50)
    assert client.post("/predict", content=large).status_code == 200


def test_settings_are_those_of_the_environment(serve):
    settings = {"MAX_BYTES": "100000", "MAX_PIXELS": "90", "API_TOKEN": "sesame"}
    with serve(**settings) as client:
        assert client.post("/predict", content=b"").status_code == 401
        client.headers["Authorization"] = "Bearer sesame"
        assert client.post("/predict%0A", content=b"").status_code == 404
        bodies = bytes(100_001), drawn(10, 10)
        said = [client.post("/predict", content=body).json()["error"] for body in bodies]
        assert "100,000 bytes" in said[0]
        assert "9e-05 million" in said[1]
        assert client.post("/predict", content=drawn(9, 10)).status_code == 200
