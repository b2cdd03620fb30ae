"""The picture in a request: its body, a file in a form, or base64 in JSON."""

import asyncio
import base64
import json
import os

import pytest
from starlette.requests import Request

from simplestack.serving import forms
from simplestack.serving.errors import HttpError

MULTIPART = "multipart/form-data; boundary=x"
CURL = "send it as curl -F image=@image.jpg does."
DAMAGED, NO_FILE = f"The form is damaged: {CURL}", f"The form has no file: {CURL}"
NO_IMAGE = (
    'This JSON has no image: send {"inputs": the image in base64, "parameters": {"top_k": 5}}, or'
    " the bytes of the image."
)
NO_TOP_K = "top_k is not a number from 1 to 999999."
FIELD = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
END = b"\r\n--x--\r\n"


def request(content_type: str | None) -> Request:
    headers = [] if content_type is None else [(b"content-type", content_type.encode())]
    return Request({"type": "http", "headers": headers})


def image_of(body: bytes, content_type: str | None = MULTIPART) -> bytes:
    return bytes(asyncio.run(forms.image_of(request(content_type), bytearray(body))))


def file(data: bytes, name: bytes = b"a") -> bytes:
    """Return a part of a form that is a file."""
    head = b'Content-Disposition: form-data; name="%b"; filename="a"\r\n\r\n' % name
    return b"--x\r\n" + head + data + b"\r\n"


# Forms


@pytest.mark.parametrize(
    "content_type",
    [None, "", "image/jpeg", "text/plain", "multipart/mixed; boundary=x", "x; multipart/form-data"],
)
def test_a_body_that_is_no_form_is_the_picture(content_type):
    body = file(b"data") + b"--x--\r\n"
    assert image_of(body, content_type) == body


@pytest.mark.parametrize(
    "content_type",
    [
        *(MULTIPART, "Multipart/Form-Data; boundary=x", 'multipart/form-data; boundary="x"'),
        "multipart/form-data; charset=undefined; boundary=x",
    ],
)
@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_the_file_of_a_form_is_the_picture(content_type, size):
    data = os.urandom(size)
    assert image_of(file(data) + b"--x--\r\n", content_type) == data


def test_the_first_of_several_files_is_the_picture():
    parts = FIELD + b"hello\r\n" + file(b"first") + file(b"second", b"b") + b"--x--\r\n"
    assert image_of(parts) == b"first"


@pytest.mark.parametrize("length", [1, 70])
def test_a_boundary_has_up_to_70_characters(length):
    boundary = "x" * length
    body = file(b"data").replace(b"--x", b"--" + boundary.encode()) + f"--{boundary}--\r\n".encode()
    assert image_of(body, f"multipart/form-data; boundary={boundary}") == b"data"


@pytest.mark.parametrize(
    ("body", "content_type", "sentence"),
    [
        (b"", "multipart/form-data", DAMAGED),
        (file(b"a") + b"--x--\r\n", "multipart/form-data; boundary=", DAMAGED),
        (file(b"a") + b"--x--\r\n", f"multipart/form-data; boundary={'x' * 71}", DAMAGED),
        (file(b"a") + b"--x--\r\n", 'multipart/form-data; boundary="ü"', DAMAGED),
        (b"junk", MULTIPART, DAMAGED),
        (b"--x\r\n\r\njunk", MULTIPART, DAMAGED),
        (b"--x--\r\n", MULTIPART, NO_FILE),
        (FIELD + b"1" + END, MULTIPART, NO_FILE),
        (b"", MULTIPART, NO_FILE),
    ],
)
def test_a_form_without_a_file_gets_a_clear_answer(body, content_type, sentence):
    with pytest.raises(HttpError) as raised:
        image_of(body, content_type)
    assert (raised.value.status, str(raised.value)) == (400, sentence)


def test_a_form_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(forms, "SECONDS", 0)
    with pytest.raises(HttpError) as raised:
        image_of(file(b"a" * 100_000) + b"--x--\r\n")
    assert str(raised.value) == DAMAGED


def test_others_have_their_turn_while_a_form_is_parsed():
    turns = 0

    async def parse() -> None:
        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        running = asyncio.create_task(others())
        await forms.image_of(request(MULTIPART), bytearray(file(bytes(1_000_000)) + b"--x--\r\n"))
        running.cancel()

    asyncio.run(parse())
    assert turns >= 1_000_000 // 2**14


def test_the_picture_is_not_held_twice():
    form, text = bytearray(file(b"a") + b"--x--\r\n"), bytearray(b'{"inputs": "AAAA"}')
    asyncio.run(forms.image_of(request(MULTIPART), form))
    forms.inputs_of(text)
    assert not form
    assert not text


def test_a_form_gets_the_answer_of_its_first_file(client, photo):
    files = [
        ("note", (None, "hello")),
        ("a", ("a.jpg", photo.read_bytes())),
        ("b", ("b.jpg", b"junk")),
    ]
    answer = client.post("/predict", files=files)
    assert answer.json() == client.post("/predict", content=photo.read_bytes()).json()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "multipart/form-data"),
        (b"junk", MULTIPART),
        (b"--x\r\n\r\njunk", MULTIPART),
        (FIELD + b"1" + END, MULTIPART),
        (file(b"1") + b"--x--\r\n", MULTIPART),
    ],
    ids=["no-boundary", "junk", "cut", "no-file", "no-image"],
)
def test_a_form_without_an_image_gets_a_clear_answer(client, body, content_type):
    answer = client.post("/predict", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]


# JSON

IMAGE = bytes(range(256)) * 4
ENCODED = base64.b64encode(IMAGE).decode()


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        *(("application/json", True), ("Application/JSON; charset=utf-8", True)),
        *(("text/json", False), ("", False), (None, False), ("x application/json", False)),
    ],
)
def test_json_is_what_is_said_to_be_json(content_type, expected):
    assert forms.is_json(request(content_type)) is expected


AROUND = len(json.dumps({"inputs": "", "more": ""}))
SOFTMAX = {"top_k": None, "function_to_apply": "softmax"}


@pytest.mark.parametrize(
    ("text", "query"),
    [
        (json.dumps({"inputs": ENCODED}), b""),
        (json.dumps({"inputs": ENCODED, "parameters": {"top_k": 3}}), b"top_k=3"),
        (json.dumps({"parameters": SOFTMAX, "inputs": ENCODED}), b""),
        (json.dumps({"inputs": ENCODED}, indent=2).replace("/", "\\/"), b""),  # as PHP writes it
        (json.dumps({"inputs": ENCODED, "parameters": None, "options": {"wait": True}}), b""),
        (json.dumps({"inputs": ENCODED, "more": "x" * (1000 - AROUND)}), b""),
        (json.dumps({"inputs": ENCODED, "parameters": {"top_k": 999_999}}), b"top_k=999999"),
        (json.dumps({"inputs": ""}), b""),
    ],
)
def test_json_of_other_programs_is_understood(text, query):
    image, asked = forms.inputs_of(bytearray(text.encode()))
    assert (bytes(image), asked) == (b"" if '""' in text else IMAGE, query)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '"inputs": ""',
        '["inputs", "inputs": "AAAA"]',
        '{"inputs": "not base64!"}',
        '{"inputs": "AAA"}',
        '{"inputs": ["AAAA"]}',
        '{"inputs": "AAAA", "parameters": 5}',
        '{"inputs": "AAAA", "parameters": [1]}',
        json.dumps({"inputs": ENCODED, "more": "x" * (1001 - AROUND)}),
        '{"inputs": "AAAA", "more": "' + "x" * 2000 + '"}',
        '{"inputs":"AAAA","a":' + "[" * 980,
        b'{"inputs": "AAAA", "parameters": {"\xff": 1}}',
        "[[]," * 2_000_000,
        '"inputs"' + " " * 5_000_000,
        '"inputs":"' * 500_000,
    ],
)
def test_other_json_is_refused_with_what_to_send(text):
    with pytest.raises(HttpError) as raised:
        forms.inputs_of(bytearray(text if isinstance(text, bytes) else text.encode()))
    assert (raised.value.status, str(raised.value)) == (400, NO_IMAGE)


@pytest.mark.parametrize(
    "parameters",
    [
        *({"top_k": top_k} for top_k in (0, -1, 1.5, "2", True, [], 10**6, 10**9)),
        *({"function_to_apply": name} for name in ("sigmoid", "", {}, [], 1)),
    ],
    ids=str,
)
def test_a_parameter_in_json_is_not_guessed(parameters):
    text = json.dumps({"inputs": "AAAA", "parameters": parameters})
    with pytest.raises(HttpError) as raised:
        forms.inputs_of(bytearray(text.encode()))
    function = "function_to_apply is another than softmax."
    assert str(raised.value) == (NO_TOP_K if "top_k" in parameters else function)


def scores(answer: dict) -> list[dict]:
    """Return the probabilities of /predict as the scores of /classify."""
    best = sorted(answer["probabilities"].items(), key=lambda item: item[1], reverse=True)
    return [{"label": label, "score": score} for label, score in best]


@pytest.mark.parametrize("top_k", [None, 1, 2, 5])
@pytest.mark.parametrize("given", ["bytes", "query", "JSON"])
def test_classify_answers_with_a_list_the_best_first(client, photo, top_k, given):
    data = photo.read_bytes()
    text = {"inputs": base64.b64encode(data).decode(), "parameters": {"top_k": top_k}}
    params = {"top_k": top_k} if top_k and given != "JSON" else {}
    options = {"json": text} if given == "JSON" else {"content": data}
    if given == "query":  # beside JSON that names none
        options = {"json": {"inputs": text["inputs"]}}
    answer = client.post("/classify", params=params, **options)
    expected = scores(client.post("/predict", content=data).json())
    assert (answer.status_code, answer.json()) == (200, expected[:top_k])


def test_json_that_is_refused_gets_the_sentence(client):
    answer = client.post("/classify", json={"inputs": "AAA"})
    assert (answer.status_code, answer.json()) == (400, {"error": NO_IMAGE})


def test_json_with_more_than_max_bytes_is_refused(client):
    large = base64.b64encode(os.urandom(9_000_000)).decode()
    assert client.post("/classify", json={"inputs": large}).status_code == 413


def test_json_is_no_image_for_predict(client, photo):
    image = base64.b64encode(photo.read_bytes()).decode()
    answer = client.post("/predict", json={"inputs": image})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("This is JSON, not an image")
