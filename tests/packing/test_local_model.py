"""The packed model in this process."""

import threading
from pathlib import Path

import bentoml
import pytest

from simplestack.packing import build, local_model
from simplestack.serving.container import cores
from simplestack.serving.errors import StackError


@pytest.mark.usefixtures("bento")
def test_a_file_that_cannot_be_read_is_an_error_of_its_own(tmp_path):
    row = local_model.load()(tmp_path / "gone.jpg")
    assert row == {
        "path": str(tmp_path / "gone.jpg"),
        "error": "The file can't be read: No such file or directory.",
    }


@pytest.mark.usefixtures("bento")
def test_a_model_that_was_deleted_is_one_clear_line(monkeypatch):
    def missing(_):
        raise bentoml.exceptions.NotFound("no such model")

    monkeypatch.setattr(bentoml.models, "get", missing)
    with pytest.raises(StackError, match=r"is deleted: python saveToBento\.py"):
        local_model.load()


@pytest.mark.usefixtures("bento")
def test_a_damaged_model_is_not_used():
    file = Path(bentoml.models.get(build.latest().info.all_models[0].tag).path_of("model.onnx"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")
    with pytest.raises(StackError, match="damaged"):
        local_model.load()
    file.write_bytes(whole)


def test_however_many_photos_there_are_few_are_in_flight():
    started, lock, paths = [], threading.Lock(), [Path(str(i)) for i in range(500)]

    def answer(path: Path) -> dict:
        with lock:
            started.append(path)
        return {"path": str(path)}

    rows = local_model.answer_all(answer, paths)
    assert next(rows) == {"path": "0"}
    assert len(started) <= 4 * cores() + 1
    assert [row["path"] for row in rows] == [str(path) for path in paths[1:]]
