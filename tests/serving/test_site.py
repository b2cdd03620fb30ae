"""All routes but the predictions: pages, example photos, model.json, 404 and CORS."""

import re
import sys

import pytest
from helpers import metrics, other_classes

from simplestack.serving import site

PREFLIGHT = {"Origin": "https://mine.example", "Access-Control-Request-Method": "POST"}


@pytest.fixture
def noise(client, model_file, photo, tmp_path, monkeypatch):
    """A picture unlike the training photos, for a model with other classes and a threshold."""
    noise, changes = other_classes(model_file, photo, tmp_path)
    assert client.get("/model.json").json()["classes"] == ["ants", "bees"]  # the metadata is loaded
    metadata = sys.modules["service"].load_model().metadata
    for key, value in changes.items():
        monkeypatch.setitem(metadata, key, value)
    return noise


@pytest.mark.parametrize(
    ("classes", "title"),
    [
        (["BMW", "Audi", "VW"], "BMW, Audi or VW?"),
        (["élan", "b"], "Élan or b?"),
        (["a"] * 6, "6 kinds of things?"),
    ],
)
def test_title_asks_for_the_class(classes, title):
    assert site.title(classes) == title


def test_example_photos_are_jpegs_at_the_paths_in_model_json(client):
    paths = client.get("/model.json").json()["examples"]
    assert paths == ["examples/1.jpg", "examples/2.jpg", "examples/3.jpg"]
    for answer in (client.get(f"/{path}") for path in paths):
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.content.startswith(b"\xff\xd8")


BESIDE = ("examples/4.jpg", "examples/", "examples/..%2Fmodel.onnx")  # the example photos


STATIC = ("static_content", "static_content/", "static_content/x", "static_content/index.css")
NOTHING = (404, {"error": "There is nothing at this path."})


@pytest.mark.parametrize("path", [*BESIDE, *STATIC, "nothing", "predict%0a", "docs/"])
def test_an_unknown_path_is_a_404_in_json(client, path):
    answer, head = client.get(f"/{path}"), client.head(f"/{path}")
    assert (answer.status_code, answer.json()) == NOTHING
    assert head.status_code == 404
    assert head.headers["content-type"] == "application/json"


def test_metrics_can_be_closed(serve):
    with serve(METRICS="off") as client:
        answer = client.get("/metrics")
        assert (answer.status_code, answer.json()) == NOTHING
        assert client.get("/readyz").status_code == 200


def test_the_files_of_the_description_s_page_are_served(client):
    paths = re.findall('"(static_content/[^"]+)"', client.get("/docs").text)
    assert len(paths) == 4
    assert [client.get(f"/{path}").status_code for path in paths] == [200] * 4


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_may_only_run_and_load_its_own_files(client, path):
    rules = client.get(path).headers["content-security-policy"].split("; ")
    expected = {"default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'"}
    assert expected | {"frame-ancestors 'none'"} <= set(rules)
    (scripts,) = (rule for rule in rules if rule.startswith("script-src "))
    assert "unsafe" not in scripts
    assert "*" not in scripts


def test_without_a_threshold_model_json_has_the_reason(client):
    unlike = client.get("/model.json").json()["unlike"]
    assert unlike == {"threshold": None, "reason": "it was trained on fewer than 40 photos"}


@pytest.mark.usefixtures("noise")
def test_labels_are_not_escaped_and_private_photos_are_not_served(client, photo):
    answer = client.post("/predict", content=photo.read_bytes()).content.decode()
    assert '"Fourmis d’été": ' in answer
    assert '"蜜蜂": ' in answer
    assert '"蜜蜂"' in client.get("/model.json").content.decode()
    assert client.get("/examples/1.jpg").status_code == 404


def test_a_photo_unlike_the_training_photos_is_marked_and_counted(client, photo, noise):
    before = metrics(client)
    bodies = [path.read_bytes() for path in (photo, noise)]
    like, unlike = (client.post("/predict", content=body).json() for body in bodies)
    assert (like["unlike"], unlike["unlike"]) == (False, True)
    threshold = client.get("/model.json").json()["unlike"]["threshold"]
    assert unlike["similarity"] < threshold < like["similarity"]
    assert (metrics(client) - before)["unlike_answers_total",] == 1


def test_only_pages_of_cors_origins_may_send_requests(serve, photo):
    body, asking = photo.read_bytes(), {"Origin": "https://b.example"}
    with serve(CORS_ORIGINS="https://mine.example, https://b.example") as client:
        allowed = client.options("/predict", headers=PREFLIGHT)
        answer = client.post("/predict", content=body, headers=asking)
        headers = {**PREFLIGHT, "Origin": "https://other.example"}
        other = client.options("/predict", headers=headers)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://mine.example"
    assert answer.headers["access-control-allow-origin"] == "https://b.example"
    assert "access-control-allow-origin" not in other.headers


def test_without_cors_origins_no_other_page_may_send_requests(client):
    assert client.options("/predict", headers=PREFLIGHT).status_code == 405
