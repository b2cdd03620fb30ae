"""How answers are written: JSON in one line, with letters as they are."""

import pytest

from simplestack.serving.responses import JsonLine, to_json


def test_json_is_a_line_with_letters_as_they_are():
    content = {"label": "Käfer", "score": 0.5, "unlike": None}
    line = '{"label": "Käfer", "score": 0.5, "unlike": null}\n'
    response = JsonLine(content)
    assert to_json(content) == response.body.decode() == line
    assert response.media_type == "application/json"


@pytest.mark.parametrize("path", ["/predict", "/classify", "/model.json", "/docs.json"])
def test_every_json_is_a_line(client, path):
    answer = client.get(path)
    assert answer.headers["content-type"] == "application/json"
    assert (answer.text[0], answer.text[-2:]) == ("{", "}\n")


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_method_that_the_router_does_not_know_is_said_in_json(client, method):
    answer = client.request(method, "/model.json")
    expected = {"error": f"Another method than {method} is needed here."}
    assert (answer.status_code, answer.json()) == (405, expected)
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
