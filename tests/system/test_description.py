"""The endpoints of operation and the description of the API, under real servers."""

from helpers import get, run


def check(url):
    paths = ("/livez", "/metrics", "/docs.json", "/model.json")  # /readyz was waited for
    assert {path: get(url + path).status_code for path in paths} == dict.fromkeys(paths, 200)


def test_endpoints_answer_under_bentoml_serve(bentoml_url):
    check(bentoml_url)


def test_endpoints_answer_under_gunicorn(gunicorn_url):
    check(gunicorn_url)


def test_generated_requests_find_no_violation_of_the_description(gunicorn_url, tmp_path):
    address = f"{gunicorn_url}/docs.json"
    command = ("schemathesis", "run", address, "--max-examples", "100", "--seed", "1")
    result = run(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
