"""The service over real HTTP, under both servers, with sockets and curl."""

import json
import select
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from helpers import (
    check_answer,
    connect,
    encode,
    get,
    gunicorn,
    listening,
    metrics,
    post,
    run,
    send,
    wait_until,
)
from PIL import Image

from simplestack.serving import gate, settings
from simplestack.serving.formats import FORMATS

MAX_BYTES = settings.Settings.max_bytes
PNG = encode(Image.new("1", (10_000, 10_000)), "PNG")
FORM = "multipart/form-data; boundary=x"
NO_FILE = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
CONTRACT = [
    *(("/predict", b"", {}, 400), ("/predict", b"junk", {}, 400)),
    *(("/predict", b"%PDF-1.7", {}, 415), ("/predict", b"\xff\xd8\xff\xe0" + bytes(100), {}, 400)),
    *(("/predict", PNG, {}, 413), ("/predict", b"\xff\xd8" + bytes(11_000_000), {}, 413)),
    ("/predict", NO_FILE, {"Content-Type": FORM}, 400),
    ("/classify", b"{}", {"Content-Type": "application/json"}, 400),
    *(("/predict?top_k=many", b"", {}, 400), ("/predict%0A", b"", {}, 404)),
]


@pytest.fixture(params=["bentoml_url", "gunicorn_url"])
def url(request):
    return request.getfixturevalue(request.param)


def test_tutorials_curl_and_a_form_get_an_answer_and_other_options_the_remedy(url, photo):
    def curl(*options):
        return json.loads(run("curl", "-s", f"{url}/predict", *options).stdout)

    command = ("-X", "POST", "-H", "Content-Type: image/*", "--data-binary", f"@{photo}")
    check_answer(answer := curl(*command))
    assert curl("-F", f"image=@{photo}") == answer
    broken, name = (curl("-d", f"{at}{photo}")["error"] for at in ("@", ""))
    assert "If curl -d sent it, use curl --data-binary @image.jpg" in broken
    assert "the name of a file, not an image: put an @ before it" in name


def test_endpoints_answer_and_each_mistake_has_its_status_and_a_sentence(url):
    for path in ("/livez", "/metrics", "/docs.json", "/model.json"):
        assert get(url + path).status_code == 200
    for path, body, headers, status in CONTRACT:
        answer = send("POST", url + path, data=body, headers=headers)
        said = (answer.status_code, list(answer.json()))
        assert said == (status, ["error"]), (path, body[:100])
        closed = answer.headers.get("connection") == "close"
        assert closed or len(body) <= MAX_BYTES
    wrong = send("GET", f"{url}/predict")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_an_endless_body_is_stopped_while_reading(url, photo):
    before, sent, answer, size = metrics(url), 0, None, 2**16
    with connect(url) as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head)
        # Depending on who is faster, the answer arrives, or the connection is reset.
        with suppress(ConnectionResetError, BrokenPipeError):
            while not select.select([connection], [], [], 0)[0] and sent < 20 * MAX_BYTES:
                connection.sendall(b"%x\r\n%b\r\n" % (size, bytes(size)))
                sent += size
            answer = connection.recv(12)
    assert answer in {b"HTTP/1.1 413", None}
    unread = 10 * 2**20  # in the buffers of sockets, at most
    assert 0 < sent - gate.DRAINED * MAX_BYTES < unread
    assert post(url, photo.read_bytes()).status_code == 200
    wait_until(lambda: (metrics(url) - before)["http_requests_total", "/predict", "413"])


def test_a_client_that_expects_100_continue_gets_it_or_the_error(url, photo):
    lines = "POST /predict HTTP/1.1", "Host: x", "Expect: 100-continue", "Content-Length: {}"
    head = "\r\n".join((*lines, "", ""))
    with connect(url) as connection:
        connection.sendall(head.format(MAX_BYTES + 1).encode())
        assert connection.recv(12) == b"HTTP/1.1 413"
    body = photo.read_bytes()
    with connect(url) as connection, connection.makefile("rb") as answer:
        connection.sendall(head.format(len(body)).encode())
        assert answer.readline() == b"HTTP/1.1 100 Continue\r\n"
        connection.sendall(body)
        assert answer.readline() == b"\r\n"
        assert answer.readline().startswith(b"HTTP/1.1 200 ")


def test_an_address_in_the_body_is_not_fetched(url):
    with listening() as (server, asked):
        address = f"{server}/x.jpg".encode()
        for content_type in ("image/jpeg", "application/json", "text/plain"):
            post(url, address, headers={"Content-Type": content_type})
        post(url, None, files={"image": ("x.jpg", address)})
        post(url, {"image": address.decode()})
        send("POST", f"{url}/predict%0A", data=address)
    assert asked == []


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ("; charset=punycode", b"A" * 2**20 + b"\r\n--x--\r\n"),
        ("; charset=undefined", b"A\r\n--x--\r\n"),
        *(("", b"1\r\n--x" + b" " * 4 * 2**20), ("", b"1" + b"\r\n--xZ" * 2**20)),
    ],
    ids=["punycode", "undefined", "spaces", "boundaries"],
)
def test_a_form_that_is_slow_to_read_keeps_no_client_waiting(gunicorn_url, photo, options, body):
    head = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
    headers = {"Content-Type": FORM + options}
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(post, gunicorn_url, head + body, headers=headers)
        assert post(gunicorn_url, photo.read_bytes(), timeout=5).status_code == 200
        assert slow.result().status_code == 400


def test_late_and_superfluous_requests_get_504_and_503(bento):
    # Few bytes, but many pixels to decode, one picture after the other.
    slow = encode(Image.new("RGB", (7000, 7000)), "PNG")
    with gunicorn(bento, TIMEOUT="1", MAX_REQUESTS="8") as (url, _), ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: post(url, slow), range(16)))
    late, superfluous = ([a for a in answers if a.status_code == s] for s in (504, 503))
    assert late
    assert superfluous[0].headers["retry-after"] == "1"
    assert all(list(a.json()) == ["error"] for a in late + superfluous)


def test_a_token_is_asked_for_while_the_client_is_still_sending(bento, photo):
    with gunicorn(bento, API_TOKEN="sésame") as (url, _):  # noqa: S106
        for headers in ({}, {"Authorization": "Bearer sesame"}, {"Expect": "100-continue"}):
            assert post(url, bytes(MAX_BYTES), headers=headers).status_code == 401
        right = {"Authorization": "Bearer sésame".encode()}
        assert post(url, photo.read_bytes(), headers=right).status_code == 200


def test_a_decoder_knows_no_format_but_those_that_are_read():
    ask = "from simplestack.serving import images; from PIL import Image; print(*Image.OPEN)"
    opened = run(sys.executable, "-c", ask).stdout
    assert set(opened.split()) == {*FORMATS, "DIB"}  # a part of BMP
