"""The packed model in this process."""

from pathlib import Path

import bentoml
import pytest

from simplestack.packing import build, local_model
from simplestack.serving.errors import StackError

pytestmark = pytest.mark.usefixtures("bento")


def test_a_file_that_cannot_be_read_is_an_error_of_its_own(tmp_path):
    row = local_model.load()(tmp_path / "gone.jpg")
    assert row == {
        "path": str(tmp_path / "gone.jpg"),
        "error": "The file can't be read: No such file or directory.",
    }


def test_a_name_that_nothing_has_is_one_clear_line():
    with pytest.raises(StackError, match="nothing called wasps is packed yet"):
        local_model.load("wasps")


def test_a_model_that_was_deleted_is_one_clear_line(monkeypatch):
    def missing(_):
        raise bentoml.exceptions.NotFound("no such model")

    monkeypatch.setattr("bentoml.models.get", missing)
    with pytest.raises(StackError, match=r"is deleted: python saveToBento\.py"):
        local_model.load()


def test_a_model_with_other_code_is_not_answered_by_this_one(monkeypatch):
    monkeypatch.setattr(build, "hash_code", lambda: "another")
    with pytest.raises(StackError, match=r"has other code than is here: python saveToBento\.py"):
        local_model.load()


def test_a_damaged_model_is_not_used():
    file = Path(bentoml.models.get(build.latest().info.all_models[0].tag).path_of("model.onnx"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")
    with pytest.raises(StackError, match="damaged"):
        local_model.load()
    file.write_bytes(whole)
