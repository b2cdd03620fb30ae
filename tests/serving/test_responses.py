"""Answers are lines of JSON with unescaped letters."""

import pytest

from simplestack.serving.responses import JsonLine, to_json


def test_json_is_a_line_with_unescaped_letters():
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


def test_a_wrong_method_is_an_error_in_json(client):
    answer = client.post("/model.json")
    assert (answer.status_code, answer.json()) == (405, {"error": "Method Not Allowed"})
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
