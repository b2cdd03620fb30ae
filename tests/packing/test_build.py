"""The Bento: what it holds, and what it must not hold."""

import re
import sys
from pathlib import Path

import bentoml
import pytest
import yaml
from helpers import PROJECT, copy_project, get, post, run

from simplestack.packing import build as bento_module
from simplestack.packing import local_server
from simplestack.serving.errors import StackError


@pytest.fixture(scope="session")
def metadata(bento) -> dict:
    return yaml.safe_load(next(bento.glob("models/*/*/model.yaml")).read_text())["metadata"]


def test_the_model_has_the_name_in_the_service():
    assert f'BentoModel("{bento_module.MODEL}:latest")' in (PROJECT / "service.py").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's, when it imports a service
def test_two_bentos_beside_each_other_serve_their_own_classes(bento, metadata, bentoml_url, photo):
    classes = {"classes": ["Hummel", "Wespe"], "notice": ""}
    model_file = next(bento.glob("models/*/*/model.onnx"))
    other = bento_module.build_bento("other", model_file, metadata | classes, {"checkpoint": "x"})
    assert bento_module.latest().tag.name == "other"
    assert bento_module.latest(bento.parent.name).path == str(bento)
    with local_server.serve("other:latest") as url:
        page = get(url).text + get(f"{url}/docs.json").text + get(f"{url}/model.json").text
        answers = [post(x, photo.read_bytes()).json() for x in (url, bentoml_url)]
    bentoml.delete(other.tag)
    assert set(answers[0]["probabilities"]) == {"Hummel", "Wespe"}
    assert set(answers[1]["probabilities"]) == {"ants", "bees"}
    assert not re.search(r"\b(ant|bee)s?\b", page, re.IGNORECASE)


def test_metadata_says_what_is_packed(metadata, trained):
    assert metadata["classes"] == ["ants", "bees"]
    assert metadata["checkpoint_sha256"] == bento_module.hash_files(trained)
    assert metadata["validation_photos"] == 6
    assert 0 <= metadata["accuracy_packed"] <= 1
    assert 0 <= metadata["largest_logit_difference_fp32"] <= 1e-3


def test_disclaimer_of_a_demonstration_is_packed(metadata):
    assert "knows nothing of real photos" in metadata["notice"]


def test_bento_holds_what_is_served_and_nothing_else(bento):
    served = [PROJECT / "simplestack" / "__init__.py"]
    served += [p for p in (PROJECT / "simplestack" / "serving").rglob("*") if p.is_file()]
    expected = {str(p.relative_to(PROJECT)) for p in served if "__pycache__" not in str(p)}
    found = {str(p.relative_to(bento / "src")) for p in bento.glob("src/**/*") if p.is_file()}
    assert {n for n in found if "__pycache__" not in n} == {
        *("service.py", "gunicorn.conf.py", "bentofile.yaml"),
        *expected,
    }
    unwanted = {p for p in bento.rglob("*") if p.suffix in {".jpg", ".ckpt", ".gif", ".png"}}
    assert unwanted == set(bento.glob("models/*/*/examples/[123].jpg"))


def test_bento_names_nobody_and_no_place_on_this_machine(bento, trained, pictures):
    personal = [str(Path.home()), str(PROJECT), str(trained.parent), str(pictures)]
    for path in bento.rglob("*"):
        if path.suffix in {".yaml", ".txt", ".md", ".json", ".py", ".in", ""} and path.is_file():
            text = path.read_text(errors="replace")
            assert not [word for word in personal if len(word) > 5 and word in text], path


def test_requirements_are_pinned_and_without_torch(bento):
    text = (bento / "env/python/requirements.txt").read_text().replace("\\\n", "")
    *lines, bentoml_again = [line for line in text.splitlines() if line and line[0] != "#"]
    assert re.fullmatch(r"bentoml==[\w.]+", bentoml_again)  # BentoML adds it; ours has hashes
    assert all(" --hash=sha256:" in line for line in lines)
    pins = [re.split("[; ]", line)[0] for line in lines]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    names = {pin.partition("==")[0] for pin in pins}
    assert {"bentoml", "onnxruntime", "pillow", "numpy"} <= names
    assert not {name for name in names if name.startswith(("torch", "nvidia-cu", "onnxscript"))}


def test_service_imports_no_torch(bento):
    check = "import sys, service; sys.exit('torch' in sys.modules)"
    result = run(sys.executable, "-c", check, cwd=bento / "src")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "name",
    [
        "simplestack/serving/openapi.json",
        "simplestack/training/model.py",
        "simplestack/packing/examples.py",
        "service.py",
        "requirements-serve.txt",
    ],
)
def test_what_shapes_a_bento_is_packed_anew_if_it_changes(tmp_path, monkeypatch, name):
    project = copy_project(tmp_path)
    monkeypatch.setattr(bento_module, "PROJECT", project)
    before = bento_module.hash_code()
    (project / name).write_text((project / name).read_text() + "\n")
    assert bento_module.hash_code() != before


def test_failed_build_leaves_no_model_behind(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"")
    before = [str(m.tag) for m in bentoml.models.list()]
    monkeypatch.setattr(bento_module, "PROJECT", tmp_path)
    with pytest.raises(FileNotFoundError):
        bento_module.build_bento(
            "x", tmp_path / "model.onnx", {"classes": ["a", "b"], "notice": ""}, {}
        )
    assert [str(m.tag) for m in bentoml.models.list()] == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's, when it imports a service
def test_build_that_fails_at_the_end_leaves_no_bento_behind(bento, monkeypatch):
    def fail(_: Path) -> None:
        raise StackError("the Dockerfile has other lines")

    model_file = next(bento.glob("models/*/*/model.onnx"))
    before = [str(b.tag) for b in bentoml.list()]
    monkeypatch.setattr(bento_module.dockerfile, "prepare", fail)
    with pytest.raises(StackError, match="other lines"):
        bento_module.build_bento("x", model_file, {"classes": ["a", "b"], "notice": ""}, {})
    assert [str(b.tag) for b in bentoml.list()] == before
