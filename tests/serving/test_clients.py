"""Clients that people have, as they come: they get the answers of /predict."""

import base64
import json
import os
import sys

import pytest
from helpers import gunicorn, post, run, send
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError


@pytest.fixture(scope="module", params=["bentoml", "gunicorn"])
def url(request) -> str:
    return request.getfixturevalue(f"{request.param}_url")


def scores(answer: dict) -> list[dict]:
    """Return the probabilities of /predict as the scores of /classify."""
    best = sorted(answer["probabilities"].items(), key=lambda item: item[1], reverse=True)
    return [{"label": label, "score": score} for label, score in best]


@pytest.mark.parametrize("top_k", [None, 1, 2, 5])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_hugging_faces_client(url, photo, top_k, as_bytes):
    given = photo.read_bytes() if as_bytes else str(photo)
    client = InferenceClient(model=f"{url}/classify")
    found = client.image_classification(given, top_k=top_k)
    expected = scores(post(url, photo.read_bytes()).json())
    assert [{"label": x.label, "score": x.score} for x in found] == expected[:top_k]


def test_hugging_faces_client_keeps_the_query_of_its_url(url, photo):
    client = InferenceClient(model=f"{url}/classify?top_k=1")
    for options in ({}, {"function_to_apply": "softmax"}):  # bytes, and JSON
        (best,) = client.image_classification(photo, **options)
    assert best.label == post(url, photo.read_bytes()).json()["label"]


def test_hugging_faces_client_gets_the_sentence_of_an_error(url):
    with pytest.raises(HfHubHTTPError) as raised:
        InferenceClient(model=f"{url}/classify").image_classification(b"%PDF-1.7")
    assert raised.value.response.status_code == 415
    assert "This is a PDF file" in raised.value.response.json()["error"]


def test_hugging_faces_client_sends_its_token(bento, photo):
    with gunicorn(bento, API_TOKEN="sesame") as (url, _):  # noqa: S106
        right, wrong = (InferenceClient(f"{url}/classify", token=x) for x in ("sesame", "open"))
        assert len(right.image_classification(photo, top_k=1)) == 1
        with pytest.raises(HfHubHTTPError) as raised:
            wrong.image_classification(photo, top_k=1)
        assert raised.value.response.status_code == 401


BENTOMLS = """
import sys
from pathlib import Path
import bentoml

with bentoml.SyncHTTPClient(sys.argv[1]) as client:
    print(client.predict(image=Path(sys.argv[2])))
"""


def test_bentomls_client(url, photo):
    result = run(sys.executable, "-c", BENTOMLS, url, photo)
    assert json.loads(result.stdout) == post(url, photo.read_bytes()).json()


def classify(url: str, body: object, **parameters: object) -> tuple[int, object]:
    """Post JSON to /classify; return the status and the answer."""
    headers = {"Content-Type": "application/json; charset=utf-8"}
    response = send("POST", f"{url}/classify", data=body, headers=headers, params=parameters)
    return response.status_code, response.json()


def test_json_of_other_programs_is_understood(url, photo):
    image, answer = base64.b64encode(photo.read_bytes()).decode(), post(url, photo.read_bytes())
    for body in (
        json.dumps({"inputs": image}),
        json.dumps(
            {"parameters": {"top_k": None, "function_to_apply": "softmax"}, "inputs": image}
        ),
        json.dumps({"inputs": image}, indent=2).replace("/", "\\/"),  # as PHP writes it
        json.dumps({"inputs": image, "parameters": None, "options": {"wait_for_model": True}}),
    ):
        assert classify(url, body) == (200, scores(answer.json()))


@pytest.mark.parametrize(
    "body",
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
        '{"inputs": "AAAA", "more": "' + "x" * 2000 + '"}',
        '{"inputs":"AAAA","a":' + "[" * 980,
        b'{"inputs": "AAAA", "parameters": {"\xff": 1}}',
        "[[]," * 2_000_000,
        '"inputs"' + " " * 5_000_000,
        '"inputs":"' * 500_000,
    ],
)
def test_other_json_is_refused_with_what_to_send(url, body):
    status, answer = classify(url, body)
    assert status == 400
    assert answer["error"].startswith("This JSON has no image: send {")


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "2", True, [], 10**9])
def test_a_top_k_in_json_is_not_guessed(url, top_k):
    status, answer = classify(url, json.dumps({"inputs": "AAAA", "parameters": {"top_k": top_k}}))
    assert (status, "top_k is not a number" in answer["error"]) == (400, True)


@pytest.mark.parametrize("function", ["sigmoid", "", {}, [], 1])
def test_another_function_than_softmax_is_refused(url, function):
    parameters = {"function_to_apply": function}
    status, answer = classify(url, json.dumps({"inputs": "AAAA", "parameters": parameters}))
    assert (status, answer["error"]) == (400, "function_to_apply is another than softmax.")


def test_json_with_more_than_max_bytes_is_refused(url):
    body = json.dumps({"inputs": base64.b64encode(os.urandom(9_000_000)).decode()})
    assert classify(url, body)[0] == 413


def test_json_is_no_image_for_predict(url, photo):
    body = json.dumps({"inputs": base64.b64encode(photo.read_bytes()).decode()})
    response = post(url, body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"].startswith("This is JSON, not an image")


def test_the_description_has_the_path_that_many_look_for(url):
    described = send("GET", f"{url}/openapi.json").json()
    assert described == send("GET", f"{url}/docs.json").json()
    assert {"/predict", "/classify"} <= set(described["paths"])
