"""saveToBento.py: from a checkpoint to a Bento, and one clear line if that fails."""

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import bentoml
import pytest
import torch
from helpers import ODD_NAME, PROJECT, error_line, odd_names, python

import saveToBento
from simplestack.packing import build
from simplestack.serving.errors import StackError
from simplestack.training import checkpoint


def test_output_names_tag_path_accuracies_and_next_commands(packing):
    assert re.search(r"^tag: ant_or_bee_classifier:\w+$", packing.stdout, re.MULTILINE)
    accuracies = r"validation accuracy: [01]\.\d{4} before packing, [01]\.\d{4} packed"
    interval = r"\d of 6 photos, 95 % confidence interval [01]\.\d+ to [01]\.\d+"
    assert re.search(rf"{accuracies} \(\w+; {interval}\)", packing.stdout)
    assert "Next: bentoml serve ant_or_bee_classifier:latest" in packing.stdout
    assert "curl -X POST http://localhost:5000/predict" in packing.stdout


def test_packed_service_has_predicted_a_photo(packing):
    assert re.search(r'\.jpg → {"label": "(ants|bees)", "confidence": 0\.\d+', packing.stdout)


def test_second_packing_of_the_same_checkpoint_is_not_repeated(packing, trained):
    result = python("saveToBento.py", trained)
    assert "is packed already" in result.stdout
    tag = re.compile("^tag: .*$", re.MULTILINE)
    assert tag.search(result.stdout)[0] == tag.search(packing.stdout)[0]


def test_photos_are_shown_only_as_the_owner_decides(trained, tmp_path):
    home = {"BENTOML_HOME": str(tmp_path)}
    hidden = python("saveToBento.py", trained, "--no-examples", **home)
    assert hidden.returncode == 0, hidden.stderr
    assert not list(tmp_path.rglob("*.jpg"))
    # They are drawn.
    shown = python("saveToBento.py", trained, **home)
    assert f"Packing {trained}" in shown.stdout
    assert {p.name for p in tmp_path.glob("bentos/**/*.jpg")} == {"1.jpg", "2.jpg", "3.jpg"}


@pytest.mark.parametrize(
    ("photos", "expected"),
    [
        (["val/ants/10308379_1b6c72e180.jpg"], True),  # the tutorial's
        (["val/ants/me.jpg", "val/bees/my garden.jpg"], False),
    ],
)
def test_photos_of_others_are_shown_only_if_told_so(trained, tmp_path, photos, expected):
    state = checkpoint.load(trained)
    state.photos["val"] = photos
    assert saveToBento.shows_photos(state, tmp_path) == expected


def test_a_relative_bentoml_home_is_one_too(packing, bentoml_home):
    assert f"saved path: {bentoml_home}/bentos/" in packing.stdout


@odd_names
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's
def test_a_photo_of_any_name_is_printed_so_that_it_can_be_pasted(bento, trained, tmp_path, capsys):
    state = checkpoint.load(trained)
    whole = Path(state.arguments["data_dir"], state.photos["val"][0]).read_bytes()
    for name, shown in ((ODD_NAME, r"caf\xe9"), ("a bee", "a bee")):
        (tmp_path / name).write_bytes(whole)
        state.photos["val"] = [name]
        saveToBento.show(bentoml.get(f"{bento.parent.name}:{bento.name}"), state, tmp_path)
        assert f"--data-binary '@{tmp_path}/{shown}'" in capsys.readouterr().out


def test_packing_says_if_photos_have_changed_since(trained, tmp_path, capsys):
    state = checkpoint.load(trained)
    data = shutil.copytree(state.arguments["data_dir"], tmp_path / "data")
    (data / state.photos["val"][0]).unlink()
    saveToBento.select_photos(state, trained, data)
    said = capsys.readouterr().err
    assert "has changed since" in said
    assert "(1 gone)" in said
    assert f"python train.py --update --data-dir {data} --output {trained}" in said
    assert len(state.photos["val"]) == 5
    for path in data.glob("train/*/*.jpg"):
        path.rename(path.with_stem(f"new-{path.stem}"))
    with pytest.raises(StackError, match="none of the photos"):
        saveToBento.select_photos(state, trained, data)


@pytest.mark.parametrize(
    ("classes", "name"),
    [
        (["ants", "bees"], "ant_or_bee_classifier"),
        (["Hornisse", "Hummel", "Wespe"], "hornisse_or_hummel_or_wespe_classifier"),
        (["Bienen & Käfer", "Öl"], "bienen_kafer_or_ol_classifier"),
        (["a", "b", "c", "d"], "photo_classifier"),
        (["蚂蚁", "蜜蜂"], "photo_classifier"),
        (["1", "2"], "photo_classifier"),
        (["x" * 30, "y" * 30], "photo_classifier"),
    ],
)
def test_a_bento_is_called_after_its_classes(classes, name):
    assert build.default_name(classes) == name


def test_a_name_that_cannot_be_one_is_refused(capsys):
    with pytest.raises(SystemExit):
        saveToBento.main(["--name", "My Model"])
    assert "--name must be a letter" in capsys.readouterr().err


def test_newest_checkpoint_is_the_default(trained, tmp_path):
    (tmp_path / "saved_models").mkdir()
    shutil.copy(trained, tmp_path / "saved_models" / "a.ckpt")
    result = python("saveToBento.py", cwd=tmp_path)
    assert "saved_models/a.ckpt is packed already" in result.stdout, result.stderr


def test_mistake_is_one_line_without_a_traceback(tmp_path):
    assert "run `python train.py`" in error_line(python("saveToBento.py", cwd=tmp_path))


def test_missing_checkpoint_is_one_clear_line(tmp_path):
    with pytest.raises(StackError, match=r"python train\.py"):
        saveToBento.main([str(tmp_path / "none.ckpt")])


def test_a_checkpoint_of_photos_prepared_differently_is_rejected(trained, tmp_path):
    state = checkpoint.load(trained)
    state.preprocessing["mean"] = [0.5, 0.5, 0.5]
    checkpoint.save(tmp_path / "other.ckpt", state)
    with pytest.raises(StackError, match="train again"):
        saveToBento.main([str(tmp_path / "other.ckpt")])


CRAFTED: dict[str, dict[str, Any]] = {
    "no weights": {"best": {}},
    "other keys": {"best": {"fc": torch.zeros(2)}},
    "weights of another type": {"last": [1, 2]},
    "one class": {"classes": ["ants"]},
    "numbers for classes": {"classes": [1, 2]},
    "no photos": {"photos": {"train": [], "val": []}},
    "photos of other classes": {"photos": {"train": ["train/a/1.jpg"], "val": ["val/b/1.jpg"]}},
    "no data folder": {"arguments": {}},
    "a number for a text": {"notice": 1},
    "no history": {"history": []},
    "history without accuracy": {"history": [{"epoch": 1}]},
    "an epoch that is no number": {"history": [{"epoch": float("nan"), "val_accuracy": 1.0}]},
}


@pytest.mark.parametrize("changed", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_checkpoint_is_one_clear_line(trained, tmp_path, changed):
    path = tmp_path / "bad.ckpt"
    torch.save({**torch.load(trained, weights_only=True), **changed}, path)
    with pytest.raises(StackError, match=r"bad\.ckpt is damaged"):
        saveToBento.main([str(path)])


@pytest.mark.parametrize("change", [torch.Tensor.double, lambda x: x[:1], lambda x: x * torch.nan])
def test_crafted_weights_are_one_clear_line(trained, tmp_path, change):
    state = torch.load(trained, weights_only=True)
    state["best"]["resnet.fc.weight"] = change(state["best"]["resnet.fc.weight"])
    torch.save(state, tmp_path / "bad.ckpt")
    with pytest.raises(StackError, match=r"bad\.ckpt is damaged"):
        saveToBento.main([str(tmp_path / "bad.ckpt")])


def test_a_bento_that_was_cut_off_is_packed_anew(bento, trained, tmp_path):
    labels = {
        "checkpoint": build.hash_files(trained),
        "code": build.hash_code(),
        "examples": "True",
    }
    assert build.find_packed(bento.parent.name, labels)
    last = (bento / "Dockerfile").rename(tmp_path / "Dockerfile")  # what is written last
    assert build.find_packed(bento.parent.name, labels) is None
    last.rename(bento / "Dockerfile")


def test_a_full_disk_is_one_clear_line(trained, tmp_path):
    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))

    result = subprocess.run(
        [sys.executable, "saveToBento.py", trained],
        cwd=PROJECT,
        env={**os.environ, "BENTOML_HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        preexec_fn=small_disk,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "can't pack" in error_line(result)
    assert not list(tmp_path.glob("b*/*/*/*"))


@pytest.mark.parametrize("damage", ["foreign", "cut", "text", "empty"])
def test_damaged_checkpoint_is_one_clear_line(trained, tmp_path, damage):
    path = tmp_path / "bad.ckpt"
    if damage == "foreign":
        torch.save([1, 2, 3], path)
    else:
        whole = trained.read_bytes()
        path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(StackError, match=r"bad\.ckpt"):
        saveToBento.main([str(path)])


def test_missing_photos_are_one_clear_line(trained, tmp_path):
    with pytest.raises(StackError, match="--data-dir"):
        saveToBento.main([str(trained), "--data-dir", str(tmp_path / "none")])
