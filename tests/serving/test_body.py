"""The picture in a request: its body, a file in a form, or base64 in JSON."""

import base64
import json
import os

import pytest

from simplestack.serving import body as bodies
from simplestack.serving import decoder
from simplestack.serving.errors import BadImageError

MULTIPART = "multipart/form-data; boundary=x"
CURL = "send it as curl -F image=@image.jpg does."
DAMAGED, NO_FILE = f"The form is damaged: {CURL}", f"The form has no file: {CURL}"
FIELD, END = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n', b"--x--\r\n"
IMAGE = bytes(range(256)) * 4
ENCODED = base64.b64encode(IMAGE).decode()
AMPLE = decoder.Limits(4, 211_000_000, 0, 64_000_000)


def file(data, name=b"a"):
    """Return a part of a form that is a file."""
    head = b'Content-Disposition: form-data; name="%b"; filename="a"\r\n\r\n' % name
    return b"--x\r\n" + head + data + b"\r\n"


@pytest.mark.parametrize(
    "content_type", ["", "image/jpeg", "multipart/mixed; boundary=x", f"x; {MULTIPART}"]
)
def test_a_body_of_another_type_is_the_picture(content_type):
    assert bodies.unpack(file(b"data") + END, content_type) == (file(b"data") + END, b"")


# Forms


BOUNDARY = "x" * 70
BOUNDARIES = ("=x", '="x"', "=x; charset=undefined", f"={BOUNDARY}")


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("size", [0, 3_000_000])
def test_the_first_file_of_a_form_is_the_picture(boundary, size):
    data = os.urandom(size).replace(b"-", b"_")  # or it might hold the boundary
    parts = FIELD + b"hello\r\n" + file(data) + file(b"second", b"b") + END
    if BOUNDARY in boundary:
        parts = parts.replace(b"--x", b"--" + BOUNDARY.encode())
    assert bodies.unpack(parts, f"Multipart/Form-Data; boundary{boundary}") == (data, b"")


@pytest.mark.parametrize(
    ("body", "content_type", "sentence"),
    [
        (file(b"a") + END, "multipart/form-data", DAMAGED),
        (file(b"a") + END, "multipart/form-data; boundary=", DAMAGED),
        (file(b"a") + END, f"multipart/form-data; boundary={'x' * 71}", DAMAGED),
        (file(b"a") + END, f"multipart/form-data; boundary={'x' * 1000}", DAMAGED),
        (file(b"a") + END, 'multipart/form-data; boundary="ü"', DAMAGED),
        (b"junk", MULTIPART, DAMAGED),
        (b"--x\r\n\r\njunk", MULTIPART, DAMAGED),
        (END, MULTIPART, NO_FILE),
        (FIELD + b"1\r\n" + END, MULTIPART, NO_FILE),
        (b"", MULTIPART, NO_FILE),
    ],
)
def test_a_form_without_a_file_gets_a_clear_sentence(body, content_type, sentence):
    with pytest.raises(BadImageError, match=f"^{sentence}$"):
        bodies.unpack(body, content_type)


def test_a_form_gets_the_answer_of_its_first_file(client, photo):
    data = photo.read_bytes()
    files = [("note", (None, "hello")), ("a", ("a.jpg", data)), ("b", ("b.jpg", b"junk"))]
    answer, same = client.post("/predict", files=files), client.post("/predict", content=data)
    assert answer.json() == same.json()
    assert client.post("/predict", files=files[2:]).status_code == 400


# JSON


def inputs(image=ENCODED, **others):
    return json.dumps({"inputs": image, **others})


def unpack(text):
    return bodies.unpack(text.encode("latin-1"), "Application/JSON; charset=x")


@pytest.mark.parametrize(
    ("text", "top_k"),
    [
        *((inputs(), b""), (inputs(parameters={"top_k": 3}), b"3"), (inputs(""), b"")),
        (inputs(parameters={"top_k": None, "function_to_apply": "softmax"}), b""),
        ('{"parameters": {"top_k": 999999}, ' + inputs()[1:], b"999999"),
        (inputs(parameters={"top_k": "2&explain=1"}), b'"2&explain=1"'),  # for the gate to reject
        (json.dumps({"inputs": ENCODED}, indent=2).replace("/", "\\/"), b""),  # as PHP writes it
        (inputs(parameters=None, options={"wait": True}), b""),
    ],
)
def test_json_of_other_programs_is_understood(text, top_k):
    assert unpack(text) == (b"" if '""' in text else IMAGE, top_k)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '"inputs": ""', '["inputs"]', '{"inputs": "not base64!"}', "{}", "1"),
        *('{"inputs": "AAA"}', '{"inputs": ["AAAA"]}', '{"inputs": "AAAA", "parameters": [1]}'),
        *('{"inputs": "AAAA", "parameters": {"\xff": 1}}', "[[]," * 2_000_000, "[" * 2_000_000),
    ],
    ids=lambda text: text[:40],
)
def test_other_json_is_rejected_with_the_remedy(text):
    with pytest.raises(BadImageError) as raised:
        unpack(text)
    assert str(raised.value) == bodies.NO_INPUTS


@pytest.mark.parametrize("function", ["sigmoid", "", {}, 1])
def test_another_function_than_softmax_is_rejected(function):
    with pytest.raises(BadImageError, match=r"^function_to_apply is not softmax\.$"):
        unpack(inputs(parameters={"function_to_apply": function}))


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
    wrong = client.post("/classify", json={**text, "parameters": {"top_k": str(top_k)}})
    assert wrong.json() == {"error": "top_k is not a number from 1 to 999999."}


def test_rejected_json_gets_the_sentence(client, photo):
    answer = client.post("/classify", json={"inputs": "AAA"})
    assert (answer.status_code, answer.json()) == (400, {"error": bodies.NO_INPUTS})
    large = "A" * 12_000_000
    assert client.post("/classify", json={"inputs": large}).status_code == 413
    image = base64.b64encode(photo.read_bytes()).decode()
    answer = client.post("/predict", json={"inputs": image})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("This is JSON, not an image")


def test_a_decoder_unpacks_before_it_decodes(photo):
    body = json.dumps(
        {"inputs": base64.b64encode(photo.read_bytes()).decode(), "parameters": {"top_k": 3}}
    )
    failed, reply = decoder.decode(body.encode(), "application/json", AMPLE)
    assert (failed, len(reply), reply[-1:]) == (False, 3 * 224**2 + 1, b"3")
    failed, reply = decoder.decode(END, MULTIPART, AMPLE)
    assert (failed, json.loads(reply)) == (True, ["BadImageError", NO_FILE])
