"""The packed service over real HTTP, under both servers: every row of the contract's table."""

import base64
import io
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import requests
from helpers import check_answer, encode, gunicorn, post, run, send
from PIL import Image


@pytest.fixture(scope="module", params=["bentoml", "gunicorn"])
def url(request) -> str:
    return request.getfixturevalue(f"{request.param}_url")


def png(*size: int, mode: str = "1") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


def test_tutorials_curl_gets_an_answer(url, photo):
    command = ["-X", "POST", f"{url}/predict", "-H", "Content-Type: image/*"]
    result = run("curl", "-s", *command, "--data-binary", f"@{photo}")
    check_answer(json.loads(result.stdout))


def test_an_answer_is_a_line_with_at_most_six_digits(url, photo):
    answer = post(url, photo.read_bytes(), params={"explain": "1"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.text.endswith("}\n")
    assert answer.text.count("\n") == 1
    digits = re.findall(r"\.(\d+)", answer.text)
    assert max(map(len, digits)) == 6


@pytest.mark.parametrize("path", ["/predict", "/model.json", "/docs.json"])
def test_other_json_is_a_line_too(url, path):
    assert send("GET", url + path).text.endswith("}\n")


def test_curls_form_gets_the_same_answer(url, photo):
    form = run("curl", "-s", "-F", f"image=@{photo}", f"{url}/predict")
    assert json.loads(form.stdout) == post(url, photo.read_bytes()).json()


@pytest.mark.parametrize(
    "content_type",
    [
        "image/jpeg",
        "image/*",
        "image/png",
        "application/octet-stream",
        None,
        "application/x-www-form-urlencoded",
    ],
)
def test_content_type_doesnt_matter(url, photo, content_type):
    headers = {"Content-Type": content_type} if content_type else {}
    response = post(url, photo.read_bytes(), headers=headers)
    assert response.status_code == 200
    check_answer(response.json())


def test_first_file_of_a_form_is_taken(url, photo):
    files = [
        ("note", (None, "hello")),
        ("a", ("a.jpg", photo.read_bytes())),
        ("b", ("b.jpg", b"junk")),
    ]
    response = post(url, None, files=files)
    assert response.json() == post(url, photo.read_bytes()).json()


def test_explain_adds_the_activation_map(url, photo):
    answer = post(url, photo.read_bytes(), params={"explain": "1"}).json()
    assert [len(row) for row in answer["map"]] == [7] * 7


def test_explain_can_be_switched_off(url, photo):
    check_answer(post(url, photo.read_bytes(), params={"explain": "0"}).json())


def test_top_k_names_so_many_classes_the_best_first(url, photo):
    answer = post(url, photo.read_bytes()).json()
    best = post(url, photo.read_bytes(), params={"top_k": 1}).json()
    assert best == {**answer, "probabilities": {answer["label"]: answer["confidence"]}}
    both = post(url, photo.read_bytes(), params={"top_k": 9}).json()["probabilities"]
    assert list(both) == sorted(both, key=both.get, reverse=True)
    assert both == answer["probabilities"]


@pytest.mark.parametrize("top_k", ["0", "-1", "", "many", "1.5", "1e3", "٣", "1234567"])
def test_top_k_is_not_guessed(url, photo, top_k):
    for path in ("predict", "classify"):
        response = send("POST", f"{url}/{path}", data=photo.read_bytes(), params={"top_k": top_k})
        assert response.status_code == 400
        assert "top_k is not a number" in response.json()["error"]


@pytest.mark.parametrize("explain", ["perhaps", "", "true", "2"])
def test_explain_is_not_guessed(url, photo, explain):
    response = post(url, photo.read_bytes(), params={"explain": explain})
    assert response.status_code == 400
    assert "neither 0 nor 1" in response.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "no image"),
        (b"junk", 400, "not an image"),
        (b"http://localhost:1/x.jpg", 400, "an address, not an image"),
        (b'{"image": "x"}', 400, "JSON, not an image"),
        (base64.b64encode(png(100, 100)), 400, "base64, not an image"),
        (b"data:image/png;base64," + base64.b64encode(png(9, 9)), 400, "base64, not an image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 100, 400, "damaged or cut off"),
        (b"%PDF-1.7", 415, "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "SVG"),
        (b"\0\0\0\x18ftypmp42" + b"\0" * 50, 415, "video"),
        (b"\xff\xd8" + b"\0" * 11_000_000, 413, "10,485,760 bytes"),
        (png(10_000, 10_000), 413, "10000×10000"),
    ],
    ids=[
        "empty",
        "junk",
        "url",
        "json",
        "base64",
        "data",
        "header",
        "pdf",
        "svg",
        "video",
        "bytes",
        "pixels",
    ],
)
def test_what_is_no_image_gets_a_clear_answer(url, body, status, words):
    response = post(url, body)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]


@pytest.mark.parametrize("kind", ["HEIF", "PPM", "WEBP", "AVIF"])
def test_every_format_gets_the_same_answer(url, photo, kind):
    image = Image.open(photo)
    answer = post(url, encode(image, kind, **{} if kind == "PPM" else {"quality": 95}))
    assert answer.status_code == 200
    assert answer.json()["label"] == post(url, photo.read_bytes()).json()["label"]


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "heic", "tif"])
@pytest.mark.parametrize("header", [[], ["-H", "Content-Type: image/*"]])
def test_a_file_that_curl_has_damaged_gets_the_remedy(url, photo, tmp_path, suffix, header):
    kind = Image.registered_extensions().get(f".{suffix}", "HEIF")
    (tmp_path / "a").write_bytes(encode(Image.open(photo), kind))
    answer = json.loads(run("curl", "-s", "-d", f"@{tmp_path}/a", *header, f"{url}/predict").stdout)
    assert "If curl -d sent it, use curl --data-binary @image.jpg" in answer["error"]


@pytest.mark.parametrize("option", ["-d", "--data-binary"])
def test_a_forgotten_at_sign_gets_the_remedy(url, photo, option):
    answer = json.loads(run("curl", "-s", option, photo, f"{url}/predict").stdout)
    assert "the name of a file, not an image: put an @ before it" in answer["error"]


def test_a_picture_with_more_pixels_than_are_read_is_answered_if_its_decoder_reduces_it(url):
    large = encode(Image.new("RGB", (12000, 9000)), "JPEG", quality=50)
    assert post(url, large).status_code == 200


def test_truncated_image_gets_a_clear_answer(url, photo):
    response = post(url, photo.read_bytes()[:-2000], headers={"Content-Type": "image/jpeg"})
    assert response.status_code == 400
    assert "damaged or cut off" in response.json()["error"]


def test_endless_body_is_stopped_while_reading(url):
    def endless():
        while True:
            yield b"\xff\xd8" + b"\0" * 65536

    # Depending on who is faster, the answer arrives or the connection is closed under the sender.
    try:
        status = post(url, endless()).status_code
    except requests.ConnectionError:
        status = 413
    assert status == 413


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "multipart/form-data"),
        (b"junk", "multipart/form-data; boundary=x"),
        (b"--x\r\n\r\njunk", "multipart/form-data; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n1\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
    ],
    ids=["no-boundary", "junk", "cut", "no-file", "no-image"],
)
def test_form_without_an_image_gets_a_clear_answer(url, body, content_type):
    response = post(url, body, headers={"Content-Type": content_type})
    assert response.status_code == 400
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_wrong_method_gets_a_clear_answer(url, method):
    response = send(method, f"{url}/predict")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert "Use POST" in response.json()["error"]


def test_address_in_the_body_is_not_fetched(url):
    visited = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            visited.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/x.jpg".encode()
        for content_type in ("image/jpeg", "application/json", "text/plain"):
            post(url, address, headers={"Content-Type": content_type})
        post(url, None, files={"image": ("x.jpg", address)})
        post(url, {"image": address.decode()})
        send("POST", f"{url}/predict%0A", data=address)
        server.shutdown()
        thread.join()
    assert visited == []


def test_a_token_is_asked_for_if_one_is_set(bento, photo):
    with gunicorn(bento, API_TOKEN="sésame") as (url, _):  # noqa: S106
        assert post(url, photo.read_bytes()).status_code == 401
        wrong = {"Authorization": "Bearer sesame"}
        assert post(url, photo.read_bytes(), headers=wrong).status_code == 401
        for scheme in ("Bearer", "bearer"):
            right = {"Authorization": f"{scheme} sésame".encode()}
            assert post(url, photo.read_bytes(), headers=right).status_code == 200
        for headers in ({}, {"Expect": "100-continue"}):  # the client is still sending
            assert post(url, bytes(10 * 2**20), headers=headers).status_code == 401
        past = send("POST", f"{url}/predict%0A", data=photo.read_bytes())
        assert past.status_code == 404


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ("; charset=punycode", b"A" * 2**20 + b"\r\n--x--\r\n"),
        ("; charset=undefined", b"A\r\n--x--\r\n"),
        ("", b"1\r\n--x" + b" " * 9 * 2**20),
        ("", b"1" + b"\r\n--xZ" * 2**20),
    ],
)
def test_a_form_that_is_slow_to_read_keeps_nobody_waiting(gunicorn_url, photo, options, body):
    head = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
    headers = {"Content-Type": f"multipart/form-data; boundary=x{options}"}
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(post, gunicorn_url, head + body, headers=headers)
        assert post(gunicorn_url, photo.read_bytes(), timeout=5).status_code == 200
        assert slow.result().status_code == 400


def test_late_and_superfluous_requests_get_504_and_503(bento):
    slow = png(7000, 7000, mode="RGB")  # few bytes, but many pixels to decode, one after the other
    with gunicorn(bento, TIMEOUT="1", MAX_REQUESTS="8") as (url, _), ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: post(url, slow), range(16)))
    late, superfluous = ([a for a in answers if a.status_code == s] for s in (504, 503))
    assert late
    assert superfluous
    assert superfluous[0].headers["retry-after"] == "1"
    assert all(list(a.json()) == ["error"] for a in late + superfluous)
