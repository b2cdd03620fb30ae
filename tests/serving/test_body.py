"""The picture in a request: its body, a file in a form, or base64 in JSON."""

import base64
import json
import os

import pytest

from simplestack.serving import body as bodies
from simplestack.serving.errors import BadImageError

JSON, MULTIPART = "Application/JSON; charset=x", "multipart/form-data; boundary=x"
CURL = "send it as curl -F image=@image.jpg does."
DAMAGED, NO_FILE = f"The form is damaged: {CURL}", f"The form has no file: {CURL}"
NO_SOFTMAX = "function_to_apply is not softmax."
FIELD, END = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n', b"--x--\r\n"
IMAGE = bytes(range(256)) * 4
ENCODED = base64.b64encode(IMAGE).decode()


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


# JSON


def inputs(image=ENCODED, **others):
    return json.dumps({"inputs": image, **others})


@pytest.mark.parametrize(
    ("text", "top_k"),
    [
        *(
            (inputs(f"data:image/jpeg;base64,{ENCODED}"), b""),
            (inputs(), b""),
            (inputs(parameters={"top_k": 3}), b"3"),
            (inputs(""), b""),
        ),
        (inputs(parameters={"top_k": None, "function_to_apply": "softmax"}), b""),
        ('{"parameters": {"top_k": 999999}, ' + inputs()[1:], b"999999"),
        (inputs(parameters={"top_k": "2&explain=1"}), b'"2&explain=1"'),  # for the gate to reject
        (json.dumps({"inputs": ENCODED}, indent=2).replace("/", "\\/"), b""),  # as PHP writes it
        (inputs(parameters=None, options={"wait": True}), b""),
    ],
)
def test_json_of_other_programs_is_understood(text, top_k):
    assert bodies.unpack(text.encode(), JSON) == (b"" if '""' in text else IMAGE, top_k)


# Bodies without a picture


NO_JSON = (
    *("", "[]", '"inputs": ""', '["inputs"]', '{"inputs": "not base64!"}', "{}", "1"),
    *('{"inputs": "AAA"}', '{"inputs": ["AAAA"]}', '{"inputs": "AAAA", "parameters": [1]}'),
    *('{"inputs": "AAAA", "parameters": {"\xff": 1}}', "[[]," * 2_000_000, "[" * 2_000_000),
)
FUNCTIONS = [inputs(parameters={"function_to_apply": x}) for x in ("sigmoid", "", {}, 1)]


@pytest.mark.parametrize(
    ("body", "content_type", "sentence"),
    [
        (file(b"a") + END, "multipart/form-data", bodies.NO_BOUNDARY),
        (IMAGE, "Multipart/form-data; charset=x", bodies.NO_BOUNDARY),  # a raw picture
        (file(b"a") + END, "multipart/form-data; boundary=", DAMAGED),
        (file(b"a") + END, f"multipart/form-data; boundary={'x' * 71}", DAMAGED),
        (file(b"a") + END, f"multipart/form-data; boundary={'x' * 1000}", DAMAGED),
        (file(b"a") + END, 'multipart/form-data; boundary="ü"', DAMAGED),
        (b"junk", MULTIPART, DAMAGED),
        (b"--x\r\n\r\njunk", MULTIPART, DAMAGED),
        (END, MULTIPART, NO_FILE),
        (FIELD + b"1\r\n" + END, MULTIPART, NO_FILE),
        (b"", MULTIPART, NO_FILE),
        *((text.encode("latin-1"), JSON, bodies.NO_INPUTS) for text in NO_JSON),
        *((text.encode(), JSON, NO_SOFTMAX) for text in FUNCTIONS),
    ],
    ids=lambda value: str(value[:40]),
)
def test_a_body_without_a_picture_is_rejected_with_the_remedy(body, content_type, sentence):
    with pytest.raises(BadImageError) as raised:
        bodies.unpack(body, content_type)
    assert str(raised.value) == sentence


def test_the_sentence_is_the_answer(client):
    answer = client.post("/classify", json={"inputs": "AAA"})
    assert (answer.status_code, answer.json()) == (400, {"error": bodies.NO_INPUTS})
