"""saveToBento.py: from a checkpoint to a Bento, and one clear line if that fails."""

import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import bentoml
import pytest
from helpers import ODD_NAME, fresh_service, odd_names

import saveToBento
from simplestack import files
from simplestack.packing import bentos, dockerfile, local_server, onnx_file
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel
from simplestack.training import checkpoint

ANSWER = '{"label": "ants", "confidence": 0.9}'

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's


@pytest.fixture(autouse=True)
def answering(monkeypatch):
    """A server that is there at once."""
    monkeypatch.setattr(local_server, "serve", lambda *_, **__: nullcontext("http://localhost"))
    monkeypatch.setattr(local_server, "predict", lambda *_: ANSWER)
    with fresh_service():
        yield


def test_what_is_packed_already_is_shown_again(bento, packed, tmp_path, monkeypatch, capsys):
    (tmp_path / "saved_models").symlink_to(packed)
    monkeypatch.chdir(tmp_path)
    saveToBento.main([])  # the newest; and with examples, as its pictures are drawn
    printed = capsys.readouterr().out
    metadata = OnnxModel("saved_models/short.onnx").metadata
    before, after = (f"{metadata[f'accuracy_{x}']:.4f}" for x in ("checkpoint", "packed"))
    same, right = metadata["same_answers"], round(6 * metadata["accuracy_packed"])
    interval = re.search(r", 95 % confidence interval [01]\.\d+ to [01]\.\d+", printed)[0]
    photo = re.search(r"@(/.+)\n", printed)[1]
    assert (
        printed
        == f"""\
saved_models/short.ckpt is packed already.
trying it …

validation accuracy: {before} before packing, {after} packed (int8; {right} of 6 photos{interval}\
); the same answer to {same} of 6 photos
no photo is called unlike the training photos, as it was trained on fewer than 40 photos
{photo} (correct: bees) → {ANSWER}
ONNX file: saved_models/short.onnx
tag: ant_or_bee_classifier:{bento.name}
saved path: {bento}

Next: bentoml serve ant_or_bee_classifier:latest
then: curl -X POST http://localhost:5000/predict -H "Content-Type: image/*" --data-binary @{photo}
"""
    )


@pytest.fixture
def pack(model_file, trained, tmp_path, monkeypatch, capsys):
    """A function that packs tmp_path/a.ckpt without an export; it returns the line about that.

    The Bento has one requirement: BentoML parses them each time it looks for one.
    """

    def export(*_, with_examples):
        file = shutil.copyfile(model_file, tmp_path / "exported")
        photos = ["photo"] if with_examples else []
        onnx_file.write_metadata(file, {**OnnxModel(file).metadata, "examples": photos})
        return file

    def pack(*options):
        capsys.readouterr()
        with fresh_service():
            saveToBento.main([str(path), "--name", "another", *options])
        return capsys.readouterr().out.partition("\n")[0]

    path = tmp_path / "a.ckpt"
    path.symlink_to(trained)
    monkeypatch.setattr(onnx_file, "export", export)
    monkeypatch.setattr(bentos, "REQUIREMENTS", tmp_path / "requirements.txt")
    bentos.REQUIREMENTS.write_text("bentoml==1.4.40\n")
    yield pack
    for other in bentoml.list():
        if other.tag.name == "another":
            bentoml.models.delete(other.info.all_models[0].tag)
            bentoml.delete(other.tag)


def test_photos_are_shown_only_as_the_owner_decides(pack, tmp_path):
    for options, shown in (("--no-examples", []), ("", ["photo"])):  # they are drawn
        assert pack(*options.split()) == f"Packing {tmp_path}/a.ckpt as another"
        assert OnnxModel(tmp_path / "a.onnx").metadata["examples"] == shown
    left = left_behind(tmp_path)
    assert pack("--examples") == f"{tmp_path}/a.ckpt is packed already."
    assert left_behind(tmp_path) == left
    # Both ONNX files were of the same checkpoint.
    assert not (tmp_path / "a.before.onnx").exists()


def test_a_bento_or_an_onnx_file_that_is_not_whole_is_packed_anew(pack, tmp_path):
    pack()
    for name in ("Dockerfile", "models", "a.onnx"):  # the first is written last
        folder = tmp_path if name == "a.onnx" else Path(bentos.latest("another").path)
        (folder / name).rename(tmp_path / f"removed-{name}")
        assert pack().startswith("Packing")
        assert pack() == f"{tmp_path}/a.ckpt is packed already."


def test_the_onnx_file_of_the_checkpoint_before_is_kept(pack, tmp_path):
    pack("--no-examples")
    packed = (tmp_path / "a.onnx").read_bytes()
    files.keep(tmp_path / "a.ckpt")  # as train.py does before it trains anew
    pack("--examples")
    assert (tmp_path / "a.before.onnx").read_bytes() == packed


def left_behind(folder):
    """Return what packing leaves in a folder and in BentoML's store."""
    files = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in folder.glob("a.*")]
    return sorted(files), [str(x.tag) for x in (*bentoml.models.list(), *bentoml.list())]


def test_what_ends_a_build_leaves_the_old_onnx_file_and_its_bento(pack, tmp_path):
    pack("--examples")
    left = left_behind(tmp_path)
    for module, name in ((shutil, "copy"), (bentoml, "build"), (dockerfile, "prepare")):
        stop = patch.object(module, name, side_effect=KeyboardInterrupt)
        with stop, pytest.raises(KeyboardInterrupt):
            pack("--no-examples")
        assert left_behind(tmp_path) == left
    assert pack("--examples") == f"{tmp_path}/a.ckpt is packed already."


@pytest.mark.parametrize(
    ("photo", "shown"), [("val/ants/10308379_1b6c72e180.jpg", True), ("val/ants/me.jpg", False)]
)
def test_photos_of_others_are_shown_only_if_they_are_the_tutorials(trained, tmp_path, photo, shown):
    state = checkpoint.load(trained)
    state.photos["val"] = [photo]
    assert saveToBento.has_public_photos(state, tmp_path) == shown


@odd_names
def test_a_photo_of_any_name_is_printed_so_that_it_can_be_pasted(bento, model_file, capsys):
    for name, shown in ((ODD_NAME, r"caf\xe9"), ("a bee", "a bee")):
        saveToBento.show(
            bentos.latest(bento.parent.name), model_file, Path("/photos", name), "bees"
        )
        assert f"--data-binary '@/photos/{shown}'" in capsys.readouterr().out


def test_a_temperature_is_told(bento, model_file, tmp_path, capsys):
    file = shutil.copy(model_file, tmp_path)
    onnx_file.write_metadata(file, {**OnnxModel(file).metadata, "temperature": 1.629})
    saveToBento.show(bentos.latest(bento.parent.name), file, Path("a.jpg"), "bees")
    told = "a temperature of 1.63 lowers the log loss of validation photos"
    assert f"\n{told}\nno photo is called unlike" in capsys.readouterr().out


def test_packing_says_if_photos_have_changed_since(trained, pictures, tmp_path, capsys):
    state, data = checkpoint.load(trained), shutil.copytree(pictures, tmp_path / "data")
    (data / state.photos["val"][0]).unlink()
    saveToBento.select_photos(state, trained, data)
    assert capsys.readouterr().err == (
        f"note: {data} has changed since {trained} was trained (1 gone). To train on them:\n"
        f"  python train.py --update --output {trained} --epochs 2 --data-dir {data}"
        " --from-scratch\n"
    )
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
        *((x, "photo_classifier") for x in ([*"abcd"], ["蚂蚁", "蜜蜂"], [*"12"], ["x" * 30] * 2)),
    ],
)
def test_a_bento_is_called_after_its_classes(classes, name):
    assert bentos.default_name(classes) == name


# What can't be packed


def test_wrong_arguments_are_one_clear_line(trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        saveToBento.main(["--name", "My Model"])
    assert "--name must be a letter" in capsys.readouterr().err
    with pytest.raises(StackError, match="--data-dir"):
        saveToBento.main([str(trained), "--data-dir", str(tmp_path / "none")])
    (tmp_path / "bad.ckpt").write_text("no checkpoint")
    with pytest.raises(StackError, match=r"bad\.ckpt is not a checkpoint"):
        saveToBento.main([str(tmp_path / "bad.ckpt")])
