"""The endpoints of operation and the description of the API, under real servers."""

import pytest
from helpers import get, run

# Not /readyz, which the servers are waited for with.
ENDPOINTS = pytest.mark.parametrize("path", ["/livez", "/metrics", "/docs.json", "/model.json"])


@ENDPOINTS
def test_endpoint_answers_under_bentoml_serve(bentoml_url, path):
    assert get(bentoml_url + path).status_code == 200


@ENDPOINTS
def test_endpoint_answers_under_gunicorn(gunicorn_url, path):
    assert get(gunicorn_url + path).status_code == 200


def test_generated_requests_find_no_violation_of_the_description(gunicorn_url, tmp_path):
    address = f"{gunicorn_url}/docs.json"
    command = ("schemathesis", "run", address, "--max-examples", "100", "--seed", "1")
    result = run(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
