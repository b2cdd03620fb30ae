"""How answers are written: JSON in one line, with letters as they are."""

import pytest

from simplestack.serving.handlers import JsonLine, to_json


def test_json_is_a_line_with_letters_as_they_are():
    content = {"label": "Käfer", "score": 0.5, "unlike": None}
    line = '{"label": "Käfer", "score": 0.5, "unlike": null}\n'
    assert to_json(content) == line
    response = JsonLine(content)
    assert (response.body, response.media_type) == (line.encode(), "application/json")


@pytest.mark.parametrize("path", ["/predict", "/classify", "/model.json", "/docs.json"])
def test_every_json_is_a_line(client, path):
    answer = client.get(path)
    assert answer.headers["content-type"] == "application/json"
    assert answer.text.startswith("{")
    assert answer.text.endswith("}\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_method_that_the_router_does_not_know_is_said_in_json(client, method):
    answer = client.request(method, "/model.json")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert answer.json() == {"error": f"Another method than {method} is needed here."}
