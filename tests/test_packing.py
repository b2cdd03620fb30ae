"""saveToBento.py: the Bento that comes out, and one clear line where none can."""

import re
import shutil
import sys
from pathlib import Path

import bentoml
import numpy as np
import pytest
import torch
import yaml
from conftest import PROJECT, copy_project, error_line, python, run
from small import ODD_NAME, odd_names

import saveToBento
from simplestack.packing import build as bento_module
from simplestack.packing import onnx_export
from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel, softmax
from simplestack.training import checkpoint, model


@pytest.fixture(scope="session")
def metadata(bento) -> dict:
    return yaml.safe_load(next(bento.glob("models/*/*/model.yaml")).read_text())["metadata"]


def test_output_names_tag_path_accuracies_and_next_commands(packing):
    assert re.search(r"^tag: ant_or_bee_classifier:\w+$", packing.stdout, re.MULTILINE)
    assert re.search(
        r"validation accuracy: [01]\.\d{4} before packing, [01]\.\d{4} packed", packing.stdout
    )
    assert "Next: bentoml serve ant_or_bee_classifier:latest" in packing.stdout
    assert "curl -X POST http://localhost:5000/predict" in packing.stdout


def test_packed_service_has_answered_once(packing):
    assert re.search(r'\.jpg → {"label": "(ants|bees)", "confidence": 0\.\d+', packing.stdout)


def test_metadata_says_what_is_packed(metadata, trained):
    assert metadata["classes"] == ["ants", "bees"]
    assert metadata["checkpoint_sha256"] == bento_module.hash_files(trained)
    assert metadata["validation_photos"] == 6
    assert 0 <= metadata["accuracy_packed"] <= 1
    assert 0 <= metadata["largest_logit_difference_fp32"] <= 1e-3


def test_label_of_a_demonstration_is_carried_along(metadata):
    assert "knows nothing of real photos" in metadata["notice"]


def test_packed_model_answers_as_pytorch_does(bento, trained, pictures):
    state = checkpoint.load(trained)
    network = model.Classifier(2)
    network.load_state_dict(state.best)
    photos = np.stack([images.read(p.read_bytes()) for p in sorted(pictures.glob("val/*/*.jpg"))])
    packed = OnnxModel(next(bento.glob("models/*/*/model.onnx")))
    expected = softmax(onnx_export.torch_logits(network, photos))
    assert np.abs(softmax(packed(photos)[0]) - expected).max() < 0.05


def test_packed_explanation_is_the_prediction(bento):
    photos = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    logits, maps = OnnxModel(next(bento.glob("models/*/*/model.onnx")))(photos)
    assert np.allclose(maps.mean((2, 3)), logits, atol=1e-4)


def test_bento_holds_what_is_served_and_nothing_else(bento):
    served = [PROJECT / "simplestack" / "__init__.py"]
    served += [p for p in (PROJECT / "simplestack" / "serving").rglob("*") if p.is_file()]
    expected = {str(p.relative_to(PROJECT)) for p in served if "__pycache__" not in str(p)}
    found = {str(p.relative_to(bento / "src")) for p in bento.glob("src/**/*") if p.is_file()}
    assert {n for n in found if "__pycache__" not in n} == {
        *("service.py", "gunicorn.conf.py", "bentofile.yaml"),
        *expected,
    }
    assert not [p for p in bento.rglob("*") if p.suffix in {".jpg", ".ckpt", ".gif", ".png"}]


def test_bento_names_nobody_and_no_place_on_this_machine(bento, trained, pictures):
    personal = [str(Path.home()), str(PROJECT), str(trained.parent), str(pictures)]
    for path in bento.rglob("*"):
        if path.suffix in {".yaml", ".txt", ".md", ".json", ".py", ".in", ""} and path.is_file():
            text = path.read_text(errors="replace")
            assert not [word for word in personal if len(word) > 5 and word in text], path


def test_requirements_are_pinned_and_without_torch(bento):
    lines = (bento / "env/python/requirements.txt").read_text().splitlines()
    pins = [line.partition(";")[0].strip() for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    names = {pin.partition("==")[0] for pin in pins}
    assert {"bentoml", "onnxruntime", "pillow", "numpy"} <= names
    assert not {name for name in names if name.startswith(("torch", "nvidia-cu", "onnxscript"))}


def test_service_imports_no_torch(bento):
    check = "import sys, service; sys.exit('torch' in sys.modules)"
    result = run(sys.executable, "-c", check, cwd=bento / "src")
    assert result.returncode == 0, result.stderr


def test_second_packing_of_the_same_checkpoint_is_not_repeated(packing, trained):
    result = python("saveToBento.py", trained)
    assert "is packed already" in result.stdout
    tag = re.compile("^tag: .*$", re.MULTILINE)
    assert tag.search(result.stdout)[0] == tag.search(packing.stdout)[0]


def test_a_relative_bentoml_home_is_one_too(trained, tmp_path):
    result = python("saveToBento.py", trained, cwd=tmp_path, BENTOML_HOME="store")
    assert f"saved path: {tmp_path}/store/bentos/" in result.stdout, result.stderr


@odd_names
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's
def test_a_photo_of_any_name_is_put_so_that_it_can_be_pasted(bento, trained, tmp_path, capsys):
    state = checkpoint.load(trained)
    whole = Path(state.arguments["data_dir"], state.photos["val"][0]).read_bytes()
    for name, shown in ((ODD_NAME, r"caf\xe9"), ("a bee", "a bee")):
        (tmp_path / name).write_bytes(whole)
        state.photos["val"] = [name]
        saveToBento.show(bentoml.get(f"{bento.parent.name}:{bento.name}"), state, tmp_path)
        assert f"--data-binary '@{tmp_path}/{shown}'" in capsys.readouterr().out


def test_newest_checkpoint_is_the_default(trained, tmp_path):
    (tmp_path / "saved_models").mkdir()
    shutil.copy(trained, tmp_path / "saved_models" / "a.ckpt")
    result = python("saveToBento.py", cwd=tmp_path)
    assert "saved_models/a.ckpt is packed already" in result.stdout, result.stderr


def test_missing_checkpoint_is_one_clear_line(tmp_path):
    assert "run `python train.py`" in error_line(python("saveToBento.py", cwd=tmp_path))
    assert "python train.py" in error_line(python("saveToBento.py", tmp_path / "none.ckpt"))


@pytest.mark.parametrize(
    "name",
    [
        "simplestack/serving/openapi.json",
        "simplestack/training/model.py",
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


def test_a_checkpoint_of_photos_prepared_otherwise_is_refused(trained, tmp_path):
    state = checkpoint.load(trained)
    state.preprocessing["mean"] = [0.5, 0.5, 0.5]
    checkpoint.save(tmp_path / "other.ckpt", state)
    assert "train again" in error_line(python("saveToBento.py", tmp_path / "other.ckpt"))


@pytest.mark.parametrize("damage", ["foreign", "cut", "text", "empty"])
def test_damaged_checkpoint_is_one_clear_line(trained, tmp_path, damage):
    path = tmp_path / "bad.ckpt"
    if damage == "foreign":
        torch.save([1, 2, 3], path)
    else:
        whole = trained.read_bytes()
        path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[damage])
    assert "bad.ckpt" in error_line(python("saveToBento.py", path))


def test_missing_photos_are_one_clear_line(trained, tmp_path):
    result = python("saveToBento.py", trained, "--data-dir", tmp_path / "none")
    assert "--data-dir" in error_line(result)


def test_model_that_differs_from_pytorch_is_refused(trained, tmp_path, monkeypatch):
    state = checkpoint.load(trained)
    monkeypatch.setattr(saveToBento, "MAX_LOGIT_DIFFERENCE", 1e-12)
    with pytest.raises(StackError, match="not packed"):
        saveToBento.export_model(state, Path(state.arguments["data_dir"]), tmp_path)


def test_int8_that_answers_otherwise_gives_way_to_fp32(trained, tmp_path, monkeypatch, capsys):
    state = checkpoint.load(trained)
    monkeypatch.setattr(saveToBento, "MAX_CHANGED_ANSWERS", -1)
    file, metadata = saveToBento.export_model(state, Path(state.arguments["data_dir"]), tmp_path)
    assert (file.name, metadata["precision"]) == ("fp32.onnx", "fp32")
    assert "so fp32 is packed" in capsys.readouterr().out


def test_failed_build_leaves_no_model_behind(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"")
    before = [str(m.tag) for m in bentoml.models.list()]
    monkeypatch.setattr(bento_module, "PROJECT", tmp_path)
    with pytest.raises(FileNotFoundError):
        bento_module.build_bento(tmp_path / "model.onnx", {"classes": ["a", "b"], "notice": ""}, {})
    assert [str(m.tag) for m in bentoml.models.list()] == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's, when it imports a service
def test_build_that_fails_at_the_end_leaves_no_bento_behind(bento, monkeypatch):
    def fail(_: Path) -> None:
        raise StackError("the Dockerfile has other lines")

    model_file = next(bento.glob("models/*/*/model.onnx"))
    before = [str(b.tag) for b in bentoml.list()]
    monkeypatch.setattr(bento_module.dockerfile, "prepare", fail)
    with pytest.raises(StackError, match="other lines"):
        bento_module.build_bento(model_file, {"classes": ["a", "b"], "notice": ""}, {})
    assert [str(b.tag) for b in bentoml.list()] == before
