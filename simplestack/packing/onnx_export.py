"""From a trained network to the ONNX files that are served, and the proof that they agree."""

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
from simplestack.serving.inference import Floats, OnnxModel
from simplestack.training import data, model

BATCH = 32  # photos run at once when comparing


class _Explained(nn.Module):
    """What is exported: the forward pass that also gives the maps."""

    def __init__(self, classifier: model.Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier.explain(photos)


def to_onnx(classifier: model.Classifier, path: Path) -> None:
    """Write the network as fp32 ONNX: `photos` N×224×224×3 uint8 in, `logits` and `maps` out."""
    example = torch.zeros(2, images.CROP, images.CROP, 3, dtype=torch.uint8)
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter reports its steps there
        torch.onnx.export(
            _Explained(classifier).eval(),
            (example,),
            path,
            input_names=["photos"],
            output_names=["logits", "maps"],
            dynamic_shapes={"photos": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )


class _Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Hands ONNX Runtime the calibration set, one photo after the other."""

    def __init__(self, photos: Photo) -> None:
        self.rest = iter(photos[:, None])

    def get_next(self) -> dict[str, Photo] | None:
        photo = next(self.rest, None)
        return None if photo is None else {"photos": photo}


def quantize(fp32: Path, int8: Path, photos: Photo) -> None:
    """Write an int8 version of an fp32 model: static, QDQ, one scale per output channel.

    `photos`, N×224×224×3 uint8, is the calibration set: the ranges of the activations are measured
    on it. The first layer, where rounding costs most, stays in fp32, and so does the head: the mean
    of a map is still exactly the logit.
    """
    prepared = int8.with_suffix(".prepared.onnx")
    quant_pre_process(str(fp32), str(prepared))
    nodes = onnx.load(prepared).graph.node
    layers = [node.name for node in nodes if node.op_type == "Conv"]
    pooling = [node.name for node in nodes if node.op_type == "MaxPool"]  # slower in int8
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it warns that pre-processing is advised, after it
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


def read_photos(photos: data.Photos, most: int | None = None) -> tuple[Photo, list[int]]:
    """Read photos as N×224×224×3 uint8, and their labels; at `most` that many, evenly spread."""
    count = min(len(photos), most or len(photos))
    chosen = [i * len(photos) // count for i in range(count)]
    arrays = [images.read(photos.paths[i].read_bytes()) for i in chosen]
    return np.stack(arrays), [photos.labels[i] for i in chosen]


@torch.inference_mode()
def torch_logits(classifier: model.Classifier, photos: Photo) -> Floats:
    """Return PyTorch's logits, N×C."""
    classifier.eval()
    batches = torch.from_numpy(photos).split(BATCH)
    return np.asarray(torch.cat([classifier(batch) for batch in batches]), dtype=np.float32)


def onnx_logits(packed: OnnxModel, photos: Photo) -> Floats:
    """Return the packed model's logits, N×C."""
    return np.concatenate([packed(photos[i : i + BATCH])[0] for i in range(0, len(photos), BATCH)])
