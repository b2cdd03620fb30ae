"""The packed model in this process."""

from pathlib import Path

import bentoml
import pytest

from simplestack.packing import bentos, local_model
from simplestack.serving.errors import StackError

BUILD = "simplestack.packing.bentos"

pytestmark = pytest.mark.usefixtures("bento")


def test_a_file_that_cannot_be_read_is_an_error_of_its_own():
    said = {"path": "gone.jpg", "error": "The file can't be read: No such file or directory."}
    assert local_model.load()(Path("gone.jpg")) == said


def missing(_):
    raise bentoml.exceptions.NotFound("no such model")


@pytest.mark.parametrize(
    ("name", "replaced", "by", "said"),
    [
        ("wasps", f"{BUILD}.MODEL", bentos.MODEL, "nothing called wasps is packed yet"),
        ("", "bentoml.models.get", missing, r"is deleted: python saveToBento\.py"),
        ("", f"{BUILD}.hash_code", str, r"has other code than is here: python saveToBento\.py"),
    ],
)
def test_what_is_missing_or_old_is_one_line(monkeypatch, name, replaced, by, said):
    monkeypatch.setattr(replaced, by)
    with pytest.raises(StackError, match=said):
        local_model.load(name)


def test_a_damaged_model_is_not_used():
    file = Path(bentoml.models.get(bentos.latest().info.all_models[0].tag).path_of("model.onnx"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")
    with pytest.raises(StackError, match="damaged"):
        local_model.load()
    file.write_bytes(whole)
