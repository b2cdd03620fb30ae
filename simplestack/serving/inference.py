"""Run the packed model with ONNX Runtime: photos in; logits, maps and similarities out."""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

# Before ONNX Runtime is imported, which otherwise reports each start to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from simplestack.serving.cgroup import cores
from simplestack.serving.errors import StackError
from simplestack.serving.images import Photo

Floats = NDArray[np.float32]
Outputs = tuple[Floats, Floats, Floats]
"""Logits, N×C; class activation maps, N×C×7×7; similarities, N, to the training photos."""


class Unlike(TypedDict):
    """When a photo is unlike the training photos. Similarities are cosines, 0 to 1."""

    threshold: float | None  # below this similarity; None if no threshold makes sense
    reason: NotRequired[str]  # why there is none
    chosen_by: NotRequired[str]  # how the threshold was chosen
    validation_photos_unlike: NotRequired[float]  # share of them, 0 to 1


class Metadata(TypedDict):
    """The metadata of a packed ONNX file, each value as JSON: all that is known of the model."""

    classes: list[str]  # in the order of the logits
    notice: str  # the disclaimer: what to know before trusting the model; "" if nothing
    architecture: str
    preprocessing: dict[str, int | str]  # sizes in pixels
    precision: str  # of the weights: int8 or fp32
    trained: str  # the date, YYYY-MM-DD
    checkpoint_sha256: str
    epochs: int  # of fine-tuning; 0 is the linear probe alone
    served_epoch: int  # the best of them
    validation_photos: int
    accuracy_checkpoint: float  # of PyTorch's model on the validation photos, 0 to 1
    accuracy_packed: float  # of this one
    same_answers: int  # validation photos with the same label from both
    largest_logit_difference_fp32: float  # between PyTorch's model and its fp32 export
    largest_logit_difference_packed: float  # between PyTorch's model and this one
    unlike: Unlike
    examples: list[str]  # up to three photos for the page, JPEGs in base64


class OnnxModel:
    """A packed model, loaded once and safe to call from several threads."""

    def __init__(self, path: Path | str) -> None:
        """Load the model, with a thread for each core. Raises StackError if it can't be loaded."""
        self.path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        # Threads that wait by spinning take the cores from those that decode pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # That optimizer would make the pooling behind the first layer an int8 one, which takes
        # many times as long.
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
        """What is known of the model. Raises StackError if the file doesn't say all of it."""
        values = self.session.get_modelmeta().custom_metadata_map
        try:
            return cast(Metadata, {k: json.loads(values[k]) for k in Metadata.__annotations__})
        except (KeyError, ValueError) as error:
            raise self._unusable() from error

    def __call__(self, photos: Photo) -> Outputs:
        """Return the outputs for N×224×224×3 uint8."""
        return cast(Outputs, tuple(self.session.run(None, {"photos": photos})))


def answer(metadata: Metadata, outputs: Outputs, top_k: int | None = None) -> dict[str, Any]:
    """Return the JSON answer for one photo, given the outputs for a batch of one.

    Its keys: label, confidence, probabilities, similarity, and unlike, which is None if the model
    has no threshold. With `top_k`, at least 1, only so many classes have a probability there, the
    most probable first.
    """
    (logits,), _, similarities = outputs
    classes, threshold = metadata["classes"], metadata["unlike"]["threshold"]
    probabilities, (similarity,) = rounded(softmax(logits)), rounded(similarities.clip(0, 1))
    best = (-logits).argsort(kind="stable").tolist()
    named = best[:top_k] if top_k else range(len(classes))
    return {
        "label": classes[best[0]],
        "confidence": probabilities[best[0]],
        "probabilities": {classes[i]: probabilities[i] for i in named},
        "similarity": similarity,
        "unlike": None if threshold is None else similarity < threshold,
    }


def rounded(numbers: Floats) -> list[Any]:
    """Return numbers as lists, rounded to six decimals."""
    return cast(list[Any], np.round(numbers.astype(np.float64), 6).tolist())


def softmax(logits: Floats) -> Floats:
    """Turn logits, …×C, into probabilities that add up to 1."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return cast(Floats, exp / exp.sum(axis=-1, keepdims=True))
