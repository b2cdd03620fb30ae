"""Export a trained model to ONNX, quantize it, and compute the logits to compare them by."""

import contextlib
import io
import logging
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from simplestack.serving import images
from simplestack.serving.images import Photo
from simplestack.serving.inference import Floats, OnnxModel, softmax
from simplestack.training.dataset import Photos
from simplestack.training.model import Classifier

BATCH = 32  # photos; has no influence on the result
MAX_CHANGED = 0.01  # share of the answers that int8 may change, and at least one
MAX_MOVED = 0.02  # by int8, of the probabilities, on average


class _Explained(nn.Module):
    """The exported model, whose forward pass also returns the class activation maps."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.explain(photos)


def to_onnx(model: Classifier, path: Path) -> None:
    """Write the model as fp32 ONNX.

    Input: `photos`, N×224×224×3 uint8. Outputs: `logits`, N×C, and `maps`, N×C×7×7.
    """
    example = torch.zeros(2, images.CROP, images.CROP, 3, dtype=torch.uint8)
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter prints its progress
        torch.onnx.export(
            _Explained(model).eval(),
            (example,),
            path,
            input_names=["photos"],
            output_names=["logits", "maps"],
            dynamic_shapes={"photos": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )


class _Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
    """The calibration set, one photo at a time."""

    def __init__(self, photos: Photo) -> None:
        self.remaining = iter(photos[:, None])

    def get_next(self) -> dict[str, Photo] | None:
        photo = next(self.remaining, None)
        return None if photo is None else {"photos": photo}


def quantize(fp32: Path, int8: Path, photos: Photo) -> None:
    """Write an int8 version of an fp32 model: static, QDQ, one scale per output channel.

    `photos`, N×224×224×3 uint8, is the calibration set, from which the activation ranges are
    measured. The first layer stays in fp32, since rounding costs most there. So does the head, to
    keep the mean of a map exactly the logit.
    """
    prepared = int8.with_suffix(".prepared.onnx")
    quant_pre_process(str(fp32), str(prepared))
    nodes = onnx.load(prepared).graph.node
    layers = [node.name for node in nodes if node.op_type == "Conv"]
    pooling = [node.name for node in nodes if node.op_type == "MaxPool"]  # slower in int8
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises pre-processing even after pre-processing
    try:
        quantization.quantize_static(
            str(prepared),
            str(int8),
            _Calibration(photos),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[layers[0], *pooling, layers[-1]],
        )
    finally:
        logging.root.setLevel(level)
        prepared.unlink(missing_ok=True)


def read_photos(photos: Photos, limit: int | None = None) -> tuple[Photo, list[int]]:
    """Read at most `limit` photos, evenly spaced, as N×224×224×3 uint8, and their labels."""
    count = min(len(photos), limit or len(photos))
    chosen = [i * len(photos) // count for i in range(count)]
    arrays = [images.read(photos.paths[i].read_bytes()) for i in chosen]
    return np.stack(arrays), photos.labels[chosen].tolist()


@torch.inference_mode()
def torch_logits(model: Classifier, photos: Photo) -> Floats:
    """Return PyTorch's logits, N×C."""
    model.eval()
    batches = torch.from_numpy(photos).split(BATCH)
    return np.asarray(torch.cat([model(batch) for batch in batches]), dtype=np.float32)


def onnx_logits(packed: OnnxModel, photos: Photo) -> Floats:
    """Return the packed model's logits, N×C."""
    return np.concatenate([packed(photos[i : i + BATCH])[0] for i in range(0, len(photos), BATCH)])


def reason_against_int8(int8: Floats, fp32: Floats, labels: list[int]) -> str:
    """Return why the N×C logits of the int8 model are too far from fp32's; "" if they aren't.

    An answer that becomes right doesn't count.
    """
    answers = int8.argmax(1)
    changed = int(((answers != fp32.argmax(1)) & (answers != np.array(labels))).sum())
    if changed > max(1, MAX_CHANGED * len(labels)):
        return f"changes the answer to {changed} of {len(labels)} photos"
    moved = float(np.abs(softmax(int8) - softmax(fp32)).mean())
    if not moved <= MAX_MOVED:
        return f"moves probabilities by {moved:.3f} on average"
    return ""
