"""Run the packed model with ONNX Runtime: photos in; logits, maps and similarities out."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, cast

# Before ONNX Runtime is imported: its makers are told of every start unless it is told not to.
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


def checksum(file: Path | str, metadata: dict[str, Any]) -> str:
    """Return the SHA-256 of a model and of what is said about it."""
    said = json.dumps(metadata, sort_keys=True).encode()
    return hashlib.sha256(Path(file).read_bytes() + said).hexdigest()


def verify(file: Path | str, metadata: dict[str, Any], sha256: str) -> None:
    """Raise StackError if a model, or what is said about it, isn't as it was packed."""
    if checksum(file, metadata) != sha256:
        raise StackError("the packed model is damaged: pack it again")


class OnnxModel:
    """A packed model, loaded once and safe to call from several threads."""

    def __init__(self, path: Path | str) -> None:
        """Load the model, with a thread for each core."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        # Threads that wait by spinning take the cores from those that decode pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # That optimizer would make the pooling behind the first layer an int8 one, which takes
        # many times as long.
        self.session = onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["QDQPropagationTransformer"],
        )

    def __call__(self, photos: Photo) -> Outputs:
        """Return the outputs for N×224×224×3 uint8."""
        return cast(Outputs, tuple(self.session.run(None, {"photos": photos})))


def answer(about: dict[str, Any], outputs: Outputs, top_k: int | None = None) -> dict[str, Any]:
    """Return what the outputs for one photo say, and whether it is unlike those of training.

    `about` is the metadata of the model. If it has no threshold for that, the answer is None. With
    `top_k`, at least 1, only so many classes are named, the most probable first.
    """
    (logits,), _, similarities = outputs
    classes, limit = about["classes"], about["unlike"].get("threshold")
    probabilities, (similarity,) = rounded(softmax(logits)), rounded(similarities.clip(0, 1))
    best = (-logits).argsort(kind="stable").tolist()
    named = best[:top_k] if top_k else range(len(classes))
    return {
        "label": classes[best[0]],
        "confidence": probabilities[best[0]],
        "probabilities": {classes[i]: probabilities[i] for i in named},
        "similarity": similarity,
        "unlike": None if limit is None else similarity < limit,
    }


def rounded(numbers: Floats) -> list[Any]:
    """Return numbers as lists, with at most six digits after the point: more say nothing."""
    digits: list[Any] = np.round(numbers.astype(np.float64), 6).tolist()
    return digits


def softmax(logits: Floats) -> Floats:
    """Turn logits, …×C, into probabilities that add up to 1."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return cast(Floats, exp / exp.sum(axis=-1, keepdims=True))
