"""The picture in a request: its body, a file in a form, or base64 in JSON."""

import asyncio
import base64
import json
import os

import pytest
from starlette.requests import Request

from simplestack.serving import body as forms
from simplestack.serving.errors import BadImageError

MULTIPART = "multipart/form-data; boundary=x"
CURL = "send it as curl -F image=@image.jpg does."
DAMAGED, NO_FILE = f"The form is damaged: {CURL}", f"The form has no file: {CURL}"
NO_IMAGE = (
    'This JSON has no image: send {"inputs": the image in base64, "parameters": {"top_k": 5}}, or'
    " the bytes of the image."
)
FIELD, END = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n', b"--x--\r\n"


def request(content_type):
    headers = [] if content_type is None else [(b"content-type", content_type.encode())]
    return Request({"type": "http", "headers": headers})


def image_of(body, content_type=MULTIPART):
    return bytes(asyncio.run(forms.image_of(request(content_type), bytearray(body))))


def file(data, name=b"a"):
    """Return a part of a form that is a file."""
    head = b'Content-Disposition: form-data; name="%b"; filename="a"\r\n\r\n' % name
    return b"--x\r\n" + head + data + b"\r\n"


# Forms


@pytest.mark.parametrize(
    "content_type", [None, "", "image/jpeg", "multipart/mixed; boundary=x", f"x; {MULTIPART}"]
)
def test_a_body_that_is_no_form_is_the_picture(content_type):
    assert image_of(file(b"data") + END, content_type) == file(b"data") + END


BOUNDARY = "x" * 70
BOUNDARIES = ("=x", '="x"', "=x; charset=undefined", f"={BOUNDARY}")


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("size", [0, 3_000_000])
def test_the_first_file_of_a_form_is_the_picture(boundary, size):
    data = os.urandom(size).replace(b"-", b"_")  # or it might hold the boundary
    parts = FIELD + b"hello\r\n" + file(data) + file(b"second", b"b") + END
    if BOUNDARY in boundary:
        parts = parts.replace(b"--x", b"--" + BOUNDARY.encode())
    assert image_of(parts, f"Multipart/Form-Data; boundary{boundary}") == data


@pytest.mark.parametrize(
    ("body", "content_type", "sentence"),
    [
        (b"", "multipart/form-data", DAMAGED),
        (file(b"a") + END, "multipart/form-data; boundary=", DAMAGED),
        (file(b"a") + END, f"multipart/form-data; boundary={'x' * 71}", DAMAGED),
        (file(b"a") + END, 'multipart/form-data; boundary="ü"', DAMAGED),
        *((b"junk", MULTIPART, DAMAGED), (b"--x\r\n\r\njunk", MULTIPART, DAMAGED)),
        *((END, MULTIPART, NO_FILE), (FIELD + b"1\r\n" + END, MULTIPART, NO_FILE)),
        (b"", MULTIPART, NO_FILE),
    ],
)
def test_a_form_without_a_file_gets_a_clear_answer(client, body, content_type, sentence):
    answer = client.post("/predict", content=body, headers={"Content-Type": content_type.encode()})
    assert (answer.status_code, answer.json()) == (400, {"error": sentence})


def test_a_form_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(forms, "SECONDS", 0)
    with pytest.raises(BadImageError, match=f"^{DAMAGED}$"):
        image_of(file(b"a" * 100_000) + END)


def test_others_have_their_turn_while_a_form_is_parsed_and_the_picture_is_not_held_twice():
    turns, body = 0, bytearray(file(bytes(1_000_000)) + END)

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def parse():
        running = asyncio.create_task(others())
        await forms.image_of(request(MULTIPART), body)
        running.cancel()

    asyncio.run(parse())
    assert turns >= 1_000_000 // 2**14
    assert not body


def test_a_form_gets_the_answer_of_its_first_file(client, photo):
    data = photo.read_bytes()
    files = [("note", (None, "hello")), ("a", ("a.jpg", data)), ("b", ("b.jpg", b"junk"))]
    answer, same = client.post("/predict", files=files), client.post("/predict", content=data)
    assert answer.json() == same.json()
    assert client.post("/predict", files=files[2:]).status_code == 400


# JSON

IMAGE = bytes(range(256)) * 4
ENCODED = base64.b64encode(IMAGE).decode()


def test_json_is_what_is_said_to_be_json():
    types = ("application/json", "Application/JSON; charset=x", "text/json", "x application/json")
    assert [forms.is_json(request(kind)) for kind in (*types, None)] == [True] * 2 + [False] * 3


def inputs(image=ENCODED, **others):
    return json.dumps({"inputs": image, **others})


AROUND = len(inputs("", more=""))


@pytest.mark.parametrize(
    ("text", "query"),
    [
        *((inputs(), b""), (inputs(parameters={"top_k": 3}), b"top_k=3"), (inputs(""), b"")),
        (inputs(parameters={"top_k": None, "function_to_apply": "softmax"}), b""),
        ('{"parameters": {"top_k": 999999}, ' + inputs()[1:], b"top_k=999999"),
        (json.dumps({"inputs": ENCODED}, indent=2).replace("/", "\\/"), b""),  # as PHP writes it
        (inputs(parameters=None, options={"wait": True}), b""),
        (inputs(more="x" * (1000 - AROUND)), b""),
    ],
)
def test_json_of_other_programs_is_understood(text, query):
    body = bytearray(text.encode())
    image, asked = forms.inputs_of(body)
    assert (bytes(image), asked, body) == (b"" if '""' in text else IMAGE, query, b"")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '"inputs": ""', '["inputs", "inputs": "AAAA"]', '{"inputs": "not base64!"}'),
        *('{"inputs": "AAA"}', '{"inputs": ["AAAA"]}', '{"inputs": "AAAA", "parameters": [1]}'),
        *(inputs(more="x" * (1001 - AROUND)), '{"inputs":"AAAA","a":' + "[" * 980),
        *('{"inputs": "AAAA", "parameters": {"\xff": 1}}', "[[]," * 2_000_000),
        *('"inputs"' + " " * 5_000_000, '"inputs":"' * 500_000),
    ],
    ids=lambda text: text[:40],
)
def test_other_json_is_refused_with_what_to_send(text):
    with pytest.raises(BadImageError) as raised:
        forms.inputs_of(bytearray(text.encode("latin-1")))
    assert (raised.value.status, str(raised.value)) == (400, NO_IMAGE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("top_k", value) for value in (0, -1, 1.5, "2", True, [], 10**6)),
        *(("function_to_apply", value) for value in ("sigmoid", "", {}, 1)),
    ],
)
def test_a_parameter_in_json_is_not_guessed(client, name, value):
    answer = client.post("/classify", json={"inputs": "AAAA", "parameters": {name: value}})
    said = "is not a number from 1 to 999999" if name == "top_k" else "is another than softmax"
    assert (answer.status_code, answer.json()) == (400, {"error": f"{name} {said}."})


@pytest.mark.parametrize("top_k", [1, 5])
def test_classify_answers_with_a_list_the_best_first(client, photo, top_k):
    data = photo.read_bytes()
    text = {"inputs": base64.b64encode(data).decode()}
    asked = {"json": {**text, "parameters": {"top_k": top_k}}}
    best = client.post("/predict", content=data).json()["probabilities"]
    expected = [{"label": x, "score": best[x]} for x in sorted(best, key=best.get, reverse=True)]
    query = f"/classify?top_k={top_k}"
    for url, options in ((query, {"content": data}), (query, {"json": text}), ("/classify", asked)):
        answer = client.post(url, **options)
        assert (answer.status_code, answer.json()) == (200, expected[:top_k])
    for options in ({"content": data}, {"json": text}):
        assert client.post("/classify", **options).json() == expected


def test_json_that_is_refused_gets_the_sentence(client, photo):
    answer = client.post("/classify", json={"inputs": "AAA"})
    assert (answer.status_code, answer.json()) == (400, {"error": NO_IMAGE})
    large = base64.b64encode(os.urandom(9_000_000)).decode()
    assert client.post("/classify", json={"inputs": large}).status_code == 413
    image = base64.b64encode(photo.read_bytes()).decode()
    answer = client.post("/predict", json={"inputs": image})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("This is JSON, not an image")
