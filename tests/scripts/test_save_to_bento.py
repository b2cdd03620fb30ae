"""saveToBento.py: from a checkpoint to a Bento, and one clear line if that fails."""

import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import bentoml
import pytest
import torch
from helpers import ODD_NAME, fresh_service, odd_names
from trainings import small_network

import saveToBento
from simplestack.packing import build, local_server, onnx_export
from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, model
from simplestack.training.checkpoint import Checkpoint

ANSWER = '{"label": "ants", "confidence": 0.9}'

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's


@pytest.fixture(autouse=True)
def answering(monkeypatch) -> Iterator[None]:
    """A server that is there at once."""
    monkeypatch.setattr(local_server, "serve", lambda _: nullcontext("http://localhost"))
    monkeypatch.setattr(local_server, "predict", lambda *_: ANSWER)
    with fresh_service():
        yield


@pytest.fixture(scope="module")
def state(trained) -> Checkpoint:
    """The checkpoint, with weights that take no place in a file; no test changes it."""
    state = checkpoint.load(trained)

    def small(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: torch.zeros((), dtype=x.dtype).expand(x.shape) for name, x in weights.items()}

    state = replace(state, best=small(state.best), last=small(state.last), optimizer={})
    assert checkpoint.is_whole(state)
    return state


# What is packed


def test_what_is_packed_already_is_shown_again(bento, trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "saved_models").mkdir()
    (tmp_path / "saved_models" / "a.ckpt").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    saveToBento.main([])  # the newest
    said = capsys.readouterr().out
    assert said.startswith("saved_models/a.ckpt is packed already.\n")
    about = build.model_of(build.latest()).info.metadata
    before, packed, same = (
        about[name] for name in ("accuracy_checkpoint", "accuracy_packed", "same_answers")
    )
    assert (
        f"\nvalidation accuracy: {before:.4f} before packing, {packed:.4f} packed (int8; " in said
    )
    interval = rf"{6 * packed:.0f} of 6 photos, 95 % confidence interval [01]\.\d+ to [01]\.\d+\)"
    assert re.search(rf"; {interval}; the same answer to {same} of 6 photos\n", said)
    assert f".jpg → {ANSWER}\n" in said
    assert f"\ntag: ant_or_bee_classifier:{bento.name}\nsaved path: {bento}\n" in said
    assert "Next: bentoml serve ant_or_bee_classifier:latest" in said
    assert "curl -X POST http://localhost:5000/predict" in said


@pytest.fixture
def exported(bento, monkeypatch) -> Iterator[list[bool]]:
    """Whether photos were to be shown by each export, which takes no time: the file is there."""
    file, about = next(bento.glob("models/*/*/model.onnx")), build.model_of(build.latest()).info
    asked = []

    def export(*_: object, with_examples: bool) -> tuple[Path, dict[str, Any]]:
        asked.append(with_examples)
        examples = about.metadata["examples"] if with_examples else []
        return file, {**about.metadata, "examples": examples}

    monkeypatch.setattr(saveToBento, "export_model", export)
    monkeypatch.setattr(onnx_export, "describe", lambda *_: None)
    yield asked
    for packed in bentoml.list():
        if packed.path != str(bento):
            bentoml.models.delete(packed.info.all_models[0].tag)
            bentoml.delete(packed.tag)


def test_photos_are_shown_only_as_the_owner_decides(exported, trained, capsys):
    arguments = [str(trained), "--name", "another"]
    for options, shown in ((["--no-examples"], False), ([], True)):  # they are drawn
        with fresh_service():
            saveToBento.main([*arguments, *options])
        assert capsys.readouterr().out.startswith(f"Packing {trained} as another\n")
        assert exported.pop() == shown
        photos = {path.name for path in Path(build.latest("another").path).rglob("*.jpg")}
        assert photos == ({"1.jpg", "2.jpg", "3.jpg"} if shown else set())
    saveToBento.main([*arguments, "--examples"])
    assert capsys.readouterr().out.startswith(f"{trained} is packed already.\n")


@pytest.mark.parametrize(
    ("photos", "expected"),
    [
        (["val/ants/10308379_1b6c72e180.jpg"], True),  # the tutorial's
        (["val/ants/me.jpg", "val/bees/my garden.jpg"], False),
    ],
)
def test_photos_of_others_are_shown_only_if_told_so(state, tmp_path, photos, expected):
    state = replace(state, photos=state.photos | {"val": photos})
    assert saveToBento.shows_photos(state, tmp_path) == expected


@odd_names
def test_a_photo_of_any_name_is_printed_so_that_it_can_be_pasted(bento, state, tmp_path, capsys):
    for name, shown in ((ODD_NAME, r"caf\xe9"), ("a bee", "a bee")):
        photos = state.photos | {"val": [name]}
        tag = f"{bento.parent.name}:{bento.name}"
        saveToBento.show(bentoml.get(tag), replace(state, photos=photos), tmp_path)
        assert f"--data-binary '@{tmp_path}/{shown}'" in capsys.readouterr().out


def test_packing_says_if_photos_have_changed_since(state, trained, tmp_path, capsys):
    data = shutil.copytree(state.arguments["data_dir"], tmp_path / "data")
    (data / state.photos["val"][0]).unlink()
    state = replace(state, photos=dict(state.photos))
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


# What can't be packed


def test_a_name_that_cannot_be_one_is_refused(capsys):
    with pytest.raises(SystemExit):
        saveToBento.main(["--name", "My Model"])
    assert "--name must be a letter" in capsys.readouterr().err


def test_missing_photos_are_one_clear_line(trained, tmp_path):
    with pytest.raises(StackError, match="--data-dir"):
        saveToBento.main([str(trained), "--data-dir", str(tmp_path / "none")])


def head(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict], dict[str, Any]]:
    """Return what changes the last layer's weights in a checkpoint."""
    name = "resnet.fc.weight"
    return lambda state: {"best": {**state["best"], name: change(state["best"][name])}}


CRAFTED: dict[str, Any] = {
    "no weights": {"best": {}},
    "other keys": {"best": {"fc": torch.zeros(2)}},
    "weights of another type": {"last": [1, 2]},
    "weights of another precision": head(torch.Tensor.double),
    "weights of another shape": head(lambda x: x[:1]),
    "weights that are no numbers": head(lambda x: x * torch.nan),
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
def test_a_crafted_checkpoint_is_one_clear_line(state, tmp_path, changed):
    path = tmp_path / "bad.ckpt"
    torch.save({**vars(state), **(changed(vars(state)) if callable(changed) else changed)}, path)
    with pytest.raises(StackError, match=r"bad\.ckpt is damaged: use another"):
        saveToBento.main([str(path)])


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_damaged_checkpoint_is_one_clear_line(state, tmp_path, damage):
    path = tmp_path / "bad.ckpt"
    torch.save(vars(state), path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(StackError, match=r"bad\.ckpt"):
        saveToBento.main([str(path)])


def test_a_checkpoint_of_photos_prepared_differently_is_rejected(state, tmp_path):
    preprocessing = state.preprocessing | {"mean": [0.5, 0.5, 0.5]}
    checkpoint.save(tmp_path / "other.ckpt", replace(state, preprocessing=preprocessing))
    with pytest.raises(StackError, match="train again"):
        saveToBento.main([str(tmp_path / "other.ckpt")])


# A full disk


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Let no file become larger than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def stored() -> list[str]:
    return [str(item.tag) for item in (*bentoml.models.list(), *bentoml.list())]


def test_a_disk_that_is_full_while_exporting_is_one_clear_line(state, tmp_path):
    before = stored()
    with small_network(tmp_path):
        weights = model.Classifier(2).state_dict()
        checkpoint.save(tmp_path / "a.ckpt", replace(state, best=weights, last=weights))
        with small_disk(1_000_000), pytest.raises(StackError, match=r"can't pack .*: make room"):
            saveToBento.main([str(tmp_path / "a.ckpt")])
    assert stored() == before


@pytest.mark.usefixtures("exported")
def test_a_disk_that_is_full_while_storing_is_one_clear_line(trained):
    before = stored()
    with small_disk(5_000_000), pytest.raises(StackError, match=r"can't pack .*: make room"):
        saveToBento.main([str(trained), "--name", "another"])
    assert stored() == before
