"""Run the ONNX file with ONNX Runtime: photos in; logits, maps and similarities out."""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

# Turns ONNX Runtime's telemetry off, so before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from simplestack.serving.cgroup import cores
from simplestack.serving.errors import StackError
from simplestack.serving.images import Photo

Floats = NDArray[np.float32]
ANSWER = ("logits", "maps", "similarity")  # the outputs that `answer` needs
Outputs = tuple[Floats, Floats, Floats]
"""Logits, N×C; class activation maps, N×C×7×7; similarities to the training photos, N."""


class Unlike(TypedDict):
    """The rule by which a photo is unlike the training photos. Similarities are cosines, 0 to 1."""

    threshold: float | None  # a photo below it is unlike; None if no threshold makes sense
    reason: NotRequired[str]  # why the threshold is None
    chosen_by: NotRequired[str]  # how the threshold was chosen
    validation_photos_unlike: NotRequired[float]  # the share below the threshold, 0 to 1


class Metadata(TypedDict):
    """The metadata of an ONNX file, each value as JSON: all the facts about the model."""

    classes: list[str]  # in the order of the logits
    notice: str  # the disclaimer, such as "trained on drawings", or ""
    architecture: str
    preprocessing: dict[str, int | str]  # sizes in pixels
    precision: str  # of the weights: int8 or fp32
    trained: str  # the date, YYYY-MM-DD
    checkpoint_sha256: str
    epochs: int  # of fine-tuning; 0 means that only the linear probe was trained
    served_epoch: int  # the best of them
    validation_photos: int
    accuracy_checkpoint: float  # of PyTorch's model on the validation photos, 0 to 1
    accuracy_packed: float  # of this model
    same_answers: int  # validation photos with the same label from both models
    temperature: float  # logits are divided by it before the softmax
    unlike: Unlike
    examples: list[str]  # up to three photos for the page, JPEGs in base64


class OnnxModel:
    """The model in an ONNX file; several threads may call it at once."""

    def __init__(self, path: Path | str) -> None:
        """Load the model; it computes with a thread per core. Raises StackError if it can't."""
        self.path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        # Spinning threads would take the cores from the decoders.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # That optimizer would turn the pooling behind the first layer into int8, which takes many
        # times as long.
        try:
            self.session = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["QDQPropagationTransformer"],
            )
        except Exception as error:  # ONNX Runtime's errors have no other class in common
            raise self._unusable() from error

    def _unusable(self) -> StackError:
        return StackError(
            f"the packed model {self.path} is missing or damaged: pack it again with"
            " python saveToBento.py"
        )

    @cached_property
    def metadata(self) -> Metadata:
        """The metadata of the file. Raises StackError if a key is missing or isn't JSON."""
        values = self.session.get_modelmeta().custom_metadata_map
        try:
            return cast(Metadata, {k: json.loads(values[k]) for k in Metadata.__annotations__})
        except (KeyError, ValueError) as error:
            raise self._unusable() from error

    def __call__(self, photos: Photo, outputs: tuple[str, ...] | None = ANSWER) -> Any:
        """Return Outputs for photos, N×224×224×3 uint8 RGB; or those named; None: all."""
        return tuple(self.session.run(outputs, {"photos": photos}))


def answer(metadata: Metadata, outputs: Outputs, top_k: int | None = None) -> dict[str, Any]:
    """Return the JSON answer for one photo from the outputs for a batch of one.

    Its keys: label, confidence, probabilities, similarity, and unlike, which is None if the model
    has no threshold. `top_k`, at least 1, limits the probabilities to the most probable classes,
    the best first.
    """
    (logits,), _, similarities = outputs
    classes, threshold = metadata["classes"], metadata["unlike"]["threshold"]
    probabilities = rounded(softmax(logits / np.float32(metadata["temperature"])))
    (similarity,) = rounded(similarities.clip(0, 1))
    best = (-logits).argsort(kind="stable").tolist()
    listed = best[:top_k] if top_k else range(len(classes))
    return {
        "label": classes[best[0]],
        "confidence": probabilities[best[0]],
        "probabilities": {classes[i]: probabilities[i] for i in listed},
        "similarity": similarity,
        "unlike": None if threshold is None else similarity < threshold,
    }


def rounded(numbers: Floats) -> list[Any]:
    """Return an array as nested lists, rounded to six decimals."""
    return cast(list[Any], np.round(numbers.astype(np.float64), 6).tolist())


def softmax(logits: Floats) -> Floats:
    """Turn logits, …×C, into probabilities, …×C, that add up to 1."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return cast(Floats, exp / exp.sum(axis=-1, keepdims=True))
