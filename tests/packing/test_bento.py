"""The Bento: what it holds, what it must not hold, and its Dockerfile."""

import re
import shutil
from pathlib import Path

import bentoml
import numpy as np
import pytest
import yaml
from helpers import PROJECT, fresh_service

from simplestack.packing import build, dockerfile, onnx_export
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel
from simplestack.training import checkpoint
from simplestack.training.dataset import Photos

BY_BENTOML = {
    *("README.md", "bento.yaml", "apis/openapi.yaml", "apis/schema.json", "src/bentofile.yaml"),
    *("env/docker/Dockerfile", "env/docker/entrypoint.sh", "env/python/requirements.in"),
    *("env/python/requirements.txt", "models/resnet18/latest", "models/resnet18/TAG/model.yaml"),
}
BY_US = {
    *("Dockerfile", "heroku.yml", "src/service.py", "src/gunicorn.conf.py"),
    "models/resnet18/TAG/model.onnx",
    *(f"models/resnet18/TAG/examples/{number}.jpg" for number in (1, 2, 3)),
}


@pytest.fixture(scope="module")
def metadata(bento) -> dict:
    return yaml.safe_load(next(bento.glob("models/*/*/model.yaml")).read_text())["metadata"]


def test_the_model_has_the_name_in_the_service():
    assert f'BentoModel("{build.MODEL}:latest")' in (PROJECT / "service.py").read_text()


def test_default_port_is_the_tutorials(bento):
    assert "port: 5000" in (bento / "bento.yaml").read_text()


def test_metadata_says_what_is_packed(metadata, bento, exported, network, trained):
    state = checkpoint.load(trained)
    data_dir, names = Path(state.arguments["data_dir"]), state.photos["val"]
    photos = Photos(data_dir, names, state.classes, whole=False)
    files = (exported / "fp32.onnx", next(bento.glob("models/*/*/model.onnx")))
    outputs = onnx_export.outputs_of((network, *map(OnnxModel, files)), photos)
    expected, fp32, served = (logits for logits, _ in outputs)
    targets = [["ants", "bees"].index(Path(name).parent.name) for name in names]
    assert metadata["classes"] == ["ants", "bees"]
    assert metadata["checkpoint_sha256"] == build.hash_files(trained)
    assert metadata["validation_photos"] == len(targets) == 6
    assert metadata["accuracy_checkpoint"] == (expected.argmax(1) == targets).mean()
    assert metadata["accuracy_packed"] == (served.argmax(1) == targets).mean()
    assert metadata["same_answers"] == (expected.argmax(1) == served.argmax(1)).sum()
    differences = [float(np.abs(logits - expected).max()) for logits in (fp32, served)]
    assert 0 <= metadata["largest_logit_difference_fp32"] <= 1e-3
    assert metadata["largest_logit_difference_fp32"] == pytest.approx(differences[0], abs=1e-5)
    assert metadata["largest_logit_difference_packed"] == pytest.approx(differences[1], abs=1e-5)
    assert (metadata["epochs"], metadata["served_epoch"]) == (2, state.best_epoch)


def test_disclaimer_of_a_demonstration_is_packed(metadata):
    assert "knows nothing of real photos" in metadata["notice"]


def test_bento_holds_what_is_served_and_nothing_else(bento):
    package = PROJECT / "simplestack"
    served = {package / "__init__.py", *filter(Path.is_file, (package / "serving").rglob("*"))}
    expected = BY_BENTOML | BY_US | {f"src/{path.relative_to(PROJECT)}" for path in served}
    files = {str(path.relative_to(bento)) for path in bento.rglob("*") if path.is_file()}
    found = {re.sub("resnet18/[a-z0-9]{16}/", "resnet18/TAG/", name) for name in files}
    compiled = {name for name in found | expected if "__pycache__" in name}
    assert found - compiled == expected - compiled


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
    shutil.copytree(PROJECT / "simplestack", tmp_path / "simplestack")
    for file in (*build.SCRIPTS, "saveToBento.py", build.REQUIREMENTS):
        shutil.copy(PROJECT / file, tmp_path)
    before = build.hash_code()
    monkeypatch.setattr(build, "PROJECT", tmp_path)
    assert build.hash_code() == before
    (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
    assert build.hash_code() != before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's
@pytest.mark.parametrize("stage", ["before", "after"])
def test_a_build_that_fails_leaves_nothing_behind(bento, tmp_path, monkeypatch, stage):
    def fail(_: Path) -> None:
        raise FileNotFoundError

    if stage == "before":
        monkeypatch.setattr(build, "PROJECT", tmp_path)
    else:
        monkeypatch.setattr(dockerfile, "prepare", fail)
    file, about = next(bento.glob("models/*/*/model.onnx")), {"classes": ["a", "b"], "notice": ""}
    before = [str(stored.tag) for stored in (*bentoml.models.list(), *bentoml.list())]
    with fresh_service(), pytest.raises(FileNotFoundError):
        build.build_bento("x", file, about, {})
    assert [str(stored.tag) for stored in (*bentoml.models.list(), *bentoml.list())] == before


# The Dockerfile


def normalised(text: str) -> str:
    return re.sub(r"\b3\.\d+\b", "3.X", text)


def test_the_dockerfile_is_the_one_that_was_reviewed(bento):
    reviewed = (PROJECT / "Dockerfile.heroku").read_text()
    assert normalised((bento / "Dockerfile").read_text()) == normalised(reviewed)


@pytest.mark.parametrize("before", dockerfile.CHANGES)
def test_a_generated_file_without_the_expected_lines_stops_packing(bento, before):
    generated, line = (bento / "env/docker/Dockerfile").read_text(), before.splitlines()[-1]
    with pytest.raises(StackError, match="times, not once"):
        dockerfile.patch(generated.replace(line, "# " + line))


def test_heroku_yml_names_the_dockerfile(bento):
    manifest = yaml.safe_load((bento / "heroku.yml").read_text())
    assert (bento / manifest["build"]["docker"]["web"]).is_file()


def test_every_user_can_read_what_is_packed(bento):
    modes = {path: path.stat().st_mode for path in bento.rglob("*")}
    unreadable = [p for p, m in modes.items() if m & 0o005 != 0o005 and (p.is_dir() or not m & 4)]
    assert not unreadable
