"""Answer photos with a packed model, in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bentoml

from simplestack.packing import bentos
from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel, answer, verify

Row = dict[str, Any]
"""The path of a photo, with an answer as from /predict or else with an error."""


def find(name: str = "") -> tuple[bentoml.Bento, bentoml.Model, dict[str, Any]]:
    """Return the service of a name or tag, else the latest; its model, and what is known about it.

    Raises StackError if there is none, its model is damaged, or it was packed with other code.
    """
    bento = bentos.latest(name)
    if bento.info.labels.get("code") != bentos.hash_code():
        raise StackError(f"{bento.tag} has other code than is here: python saveToBento.py")
    stored = bentos.model_of(bento)
    about: dict[str, Any] = dict(stored.info.metadata)
    verify(stored.path_of("model.onnx"), about, stored.info.labels["sha256"])
    return bento, stored, about


def load(name: str = "") -> Callable[[Path], Row]:
    """Return a function that answers a photo with the service of a name, else with the latest.

    Threads can share it. Raises StackError as `find` does.
    """
    _, stored, about = find(name)
    model = OnnxModel(stored.path_of("model.onnx"))

    def answer_photo(path: Path) -> Row:
        try:
            outputs = model(images.read(path.read_bytes())[None])
        except StackError as error:
            return {"path": str(path), "error": str(error)}
        except OSError as error:
            return {"path": str(path), "error": f"The file can't be read: {error.strerror}."}
        return {"path": str(path), **answer(about, outputs)}

    return answer_photo
