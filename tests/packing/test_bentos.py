"""The Bento: what it holds, what it must not hold, and its Dockerfile."""

import base64
import io
import re
import shutil
from datetime import datetime
from pathlib import Path

import bentoml
import numpy as np
import pytest
import yaml
from helpers import PROJECT, fresh_service
from PIL import Image
from serving.conftest import in_process

from simplestack.packing import bentos, dockerfile, onnx_export, onnx_file
from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel, softmax
from simplestack.training import checkpoint
from simplestack.training.dataset import Photos

FILES = """
    Dockerfile README.md bento.yaml heroku.yml apis/openapi.yaml apis/schema.json
    env/docker/Dockerfile env/docker/entrypoint.sh env/python/requirements.in
    env/python/requirements.txt models/resnet18/latest models/resnet18/TAG/model.yaml
    models/resnet18/TAG/model.onnx src/bentofile.yaml src/gunicorn.conf.py src/service.py
    src/simplestack/__init__.py
"""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's


def test_metadata_says_what_is_packed_and_it_answers_as_pytorch_does(
    model_file, exported, network, trained, pictures
):
    state = checkpoint.load(trained)
    photos = Photos(pictures, state.photos["val"], state.classes, whole=False)
    models = (OnnxModel(exported / "fp32.onnx"), OnnxModel(model_file))
    outputs = onnx_export.outputs_of((network, *models), photos)
    expected, fp32, served = (logits for logits, _ in outputs)
    targets = [["ants", "bees"].index(Path(name).parent.name) for name in state.photos["val"]]
    assert np.abs(softmax(served) - softmax(expected)).max() < 0.05
    assert np.abs(fp32 - expected).max() <= 1e-3
    metadata = models[1].metadata
    examples = [Image.open(io.BytesIO(base64.b64decode(x))) for x in metadata.pop("examples")]
    assert [photo.format for photo in examples] == ["JPEG"] * 3
    assert metadata == {
        "classes": ["ants", "bees"],
        "notice": state.disclaimer,
        "architecture": "resnet18",
        "preprocessing": onnx_file.MODEL_INPUT,
        "precision": "int8",
        "trained": f"{datetime.fromtimestamp(trained.stat().st_mtime):%Y-%m-%d}",
        "checkpoint_sha256": bentos.hash_files(trained),
        "epochs": 2,
        "served_epoch": state.best_epoch,
        "validation_photos": 6,
        "accuracy_checkpoint": (expected.argmax(1) == targets).mean(),
        "accuracy_packed": (served.argmax(1) == targets).mean(),
        "same_answers": (expected.argmax(1) == served.argmax(1)).sum(),
        "temperature": 1,  # as for all models with few validation photos
        "unlike": {"threshold": None, "reason": "it was trained on fewer than 40 photos"},
    }
    assert (images.RESIZE, images.CROP) == (256, 224)
    assert "knows nothing of real photos" in metadata["notice"]


def test_bento_and_store_hold_the_onnx_file_and_tell_nothing_of_it_again(bento, model_file):
    bento_model = bentoml.models.get("resnet18:latest")
    onnx_files = bento.glob("models/*/*/model.onnx")
    files = [Path(bento_model.path_of("model.onnx")), *onnx_files, model_file]
    assert len(files) == 3
    assert len({bentos.hash_files(file) for file in files}) == 1
    assert (bento_model.info.metadata, bento_model.info.labels) == ({}, {})


def test_bento_holds_what_is_served_and_nothing_else_for_every_user(bento):
    served = filter(Path.is_file, (PROJECT / "simplestack/serving").rglob("*"))
    expected = {*FILES.split(), *(f"src/{path.relative_to(PROJECT)}" for path in served)}
    files = {str(path.relative_to(bento)) for path in bento.rglob("*") if path.is_file()}
    copied = {re.sub("resnet18/[a-z0-9]{16}/", "resnet18/TAG/", name) for name in files}
    assert {x for x in copied ^ expected if "__pycache__" not in x} == set()
    manifest = yaml.safe_load((bento / "heroku.yml").read_text())
    assert manifest["build"]["docker"]["web"] == "Dockerfile"
    assert "port: 5000" in (bento / "bento.yaml").read_text()  # the tutorial's
    modes = {path: path.stat().st_mode for path in bento.rglob("*")}  # for Heroku's own user
    assert not [p for p, m in modes.items() if m & 0o005 != 0o005 and (p.is_dir() or not m & 4)]


def test_bento_names_nobody_and_no_place_on_this_machine(bento, trained, pictures):
    personal = [str(Path.home()), str(PROJECT), str(trained.parent), str(pictures)]
    for path in bento.rglob("*"):
        if path.suffix != ".pyc" and path.is_file():
            text = path.read_text(errors="replace")
            assert not [word for word in personal if len(word) > 5 and word in text], path


def test_requirements_are_pinned_and_without_torch(bento):
    text = (bento / "env/python/requirements.txt").read_text().replace("\\\n", "")
    *lines, bentoml_again = [line for line in text.splitlines() if line and line[0] != "#"]
    assert re.fullmatch(r"bentoml==[\w.]+", bentoml_again)  # BentoML adds it; ours has hashes
    assert all(re.match(r"[\w.-]+==[\w.]+[; ].*--hash=sha256:", line) for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert {"bentoml", "onnxruntime", "pillow", "numpy", "pip"} <= names
    assert not {name for name in names if name.startswith(("torch", "nvidia-cu", "onnxscript"))}


def test_what_shapes_a_bento_is_packed_anew_if_it_changes(tmp_path, monkeypatch):
    shutil.copytree(PROJECT / "simplestack", tmp_path / "simplestack")
    for file in (*bentos.SCRIPTS, "saveToBento.py", bentos.REQUIREMENTS):
        shutil.copy(PROJECT / file, tmp_path)
    hashes = [bentos.hash_code()]
    monkeypatch.setattr(bentos, "PROJECT", tmp_path)
    assert bentos.hash_code() == hashes[0]
    parts = ("serving/openapi.json", "training/model.py", "packing/examples.py")
    for name in (*(f"simplestack/{x}" for x in parts), "service.py", "requirements-serve.txt"):
        with (tmp_path / name).open("a") as file:
            file.write("\n")
        hashes.append(bentos.hash_code())
    assert len(set(hashes)) == 6


def test_two_bentos_beside_each_other_serve_their_own_classes(bento, model_file, photo, tmp_path):
    changes = {"classes": ["Hummel", "Wespe"], "notice": ""}
    file = shutil.copy(model_file, tmp_path)
    onnx_file.write_metadata(file, {**OnnxModel(file).metadata, **changes})
    with fresh_service():
        other = bentos.build_bento("other", file, {"checkpoint": "x"})
    bentoml.models.delete(other.info.all_models[0].tag)  # it has its own copy
    assert bentos.latest().tag.name == "other"
    assert bentos.latest(bento.parent.name).path == str(bento)
    for name, classes in (("other", ["Hummel", "Wespe"]), (bento.parent.name, ["ants", "bees"])):
        with in_process(f"{name}:latest") as client:
            answer = client.post("/predict", content=photo.read_bytes()).json()
            pages = [client.get(path).text for path in ("/", "/docs.json", "/model.json")]
        assert list(answer["probabilities"]) == classes
        assert bool(re.search(r"(?i)\b(ant|bee)s?\b", "".join(pages))) == (name != "other")
    bentoml.delete(other.tag)


def test_the_dockerfile_is_the_one_that_was_reviewed(bento):
    paths = bento / "Dockerfile", PROJECT / "Dockerfile.heroku"
    packed, reviewed = (re.sub(r"\b3\.\d+\b", "3.X", path.read_text()) for path in paths)
    assert packed == reviewed


@pytest.mark.parametrize("before", dockerfile.CHANGES)
def test_a_generated_file_without_the_expected_lines_stops_packing(bento, before):
    generated, line = (bento / "env/docker/Dockerfile").read_text(), before.splitlines()[-1]
    with pytest.raises(StackError, match="times, not once"):
        dockerfile.patch(generated.replace(line, "# " + line))
