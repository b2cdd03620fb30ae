"""Run the packed model with ONNX Runtime: photos in, logits and class activation maps out."""

import os
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from simplestack.images import Photo

Floats = NDArray[np.float32]


class OnnxModel:
    """A packed model, loaded once and safe to call from several threads."""

    def __init__(self, path: Path | str) -> None:
        """Load the model, with as many threads as this process may use cores."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, photos: Photo) -> tuple[Floats, Floats]:
        """Give the logits, N×C, and the class activation maps, N×C×7×7, of N×224×224×3 uint8."""
        logits, maps = self.session.run(["logits", "maps"], {"photos": photos})
        return cast(Floats, logits), cast(Floats, maps)


def softmax(logits: Floats) -> Floats:
    """Turn logits, …×C, into probabilities that add up to 1."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return cast(Floats, exp / exp.sum(axis=-1, keepdims=True))
