"""Clients of others get the answers of /predict."""

import json
import sys
from pathlib import Path

import pytest
from helpers import get, listening, post, run
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError


def labels(client, *given, **options):
    return [found.label for found in client.image_classification(*given, **options)]


@pytest.mark.parametrize("top_k", [None, 1, 2, 5])
@pytest.mark.parametrize("given", [Path.read_bytes, str])
def test_hugging_faces_client(gunicorn_url, photo, top_k, given):
    client = InferenceClient(model=f"{gunicorn_url}/classify")
    found = client.image_classification(given(photo), top_k=top_k)
    said = post(gunicorn_url, photo.read_bytes()).json()["probabilities"]
    best = sorted(said.items(), key=lambda item: item[1], reverse=True)
    assert [(element.label, element.score) for element in found] == best[:top_k]


@pytest.mark.parametrize("options", [{}, {"function_to_apply": "softmax"}], ids=["bytes", "JSON"])
def test_hugging_faces_client_keeps_the_query_of_its_url(gunicorn_url, photo, options):
    (best,) = labels(InferenceClient(f"{gunicorn_url}/classify?top_k=1"), photo, **options)
    assert best == post(gunicorn_url, photo.read_bytes()).json()["label"]


def test_hugging_faces_client_gets_the_sentence_of_an_error(gunicorn_url):
    with pytest.raises(HfHubHTTPError) as raised:
        labels(InferenceClient(model=f"{gunicorn_url}/classify"), b"%PDF-1.7")
    assert raised.value.response.status_code == 415
    assert "This is a PDF file" in raised.value.response.json()["error"]


def test_hugging_faces_client_sends_its_token_as_the_gate_wants_it(photo):
    with listening() as (url, asked), pytest.raises(HfHubHTTPError):
        labels(InferenceClient(f"{url}/classify", token="sesame"), photo)  # noqa: S106
    ((method, path, headers),) = asked
    assert (method, path) == ("POST", "/classify")
    assert headers["Authorization"] == "Bearer sesame"


def test_bentomls_client(bentoml_url, photo):
    program = (
        "import sys, bentoml; from pathlib import Path;"
        "client = bentoml.SyncHTTPClient(sys.argv[1]);"
        "print(client.predict(image=Path(sys.argv[2]))); client.close()"
    )
    result = run(sys.executable, "-c", program, bentoml_url, photo)
    assert json.loads(result.stdout) == post(bentoml_url, photo.read_bytes()).json()


def test_the_description_has_the_path_that_many_look_for(gunicorn_url):
    described = get(f"{gunicorn_url}/openapi.json").json()
    assert described == get(f"{gunicorn_url}/docs.json").json()
    assert {"/predict", "/classify"} <= set(described["paths"])


def test_generated_requests_find_no_violation_of_the_description(gunicorn_url, tmp_path):
    address = f"{gunicorn_url}/docs.json"
    command = ("schemathesis", "run", address, "--max-examples", "100", "--seed", "1")
    result = run(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
