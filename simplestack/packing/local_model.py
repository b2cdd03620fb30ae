"""Answer photos with a packed model, in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from simplestack.packing import build
from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel, answer, verify

Row = dict[str, Any]
"""The path of a photo, with an answer as from /predict or else with an error."""


def load(name: str = "") -> Callable[[Path], Row]:
    """Return a function that answers a photo with the service of a name, else with the latest.

    Threads can share it. Raises StackError if there is none, or its model is damaged.
    """
    stored = build.model_of(build.latest(name))
    file = stored.path_of("model.onnx")
    about: dict[str, Any] = dict(stored.info.metadata)
    verify(file, about, stored.info.labels["sha256"])
    model = OnnxModel(file)

    def answer_photo(path: Path) -> Row:
        try:
            logits, _ = model(images.read(path.read_bytes())[None])
        except StackError as error:
            return {"path": str(path), "error": str(error)}
        except OSError as error:
            return {"path": str(path), "error": f"The file can't be read: {error.strerror}."}
        return {"path": str(path), **answer(about["classes"], logits[0])}

    return answer_photo
