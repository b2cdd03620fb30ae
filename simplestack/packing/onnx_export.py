"""Export a trained model to ONNX, quantize it, and compute the outputs to compare them by."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor
from tqdm import tqdm

from simplestack.serving import images
from simplestack.serving.images import Photo
from simplestack.serving.inference import Floats, OnnxModel, Outputs, softmax
from simplestack.training.dataset import Photos
from simplestack.training.evaluate import BATCH
from simplestack.training.model import Classifier

CPU = torch.device("cpu")
FLOAT32_BITS = 24  # float32 holds whole numbers of up to so many bits exactly
ROUNDING_MARGIN = 0.02  # bits, since rounded weights can have a larger sum
MAX_CHANGED = 0.01  # share of the answers that int8 may change; it may always change one
MAX_MOVED = 0.02  # mean change of the probabilities by int8


def to_onnx(model: Classifier, path: Path) -> None:
    """Write the model as fp32 ONNX.

    Input: `photos`, N×224×224×3 uint8. Outputs: `logits`, `maps` and `features`, as in `explain`.
    """
    example = torch.zeros(2, images.CROP, images.CROP, 3, dtype=torch.uint8)
    explained = copy.copy(model)  # whose forward pass also returns maps and features
    explained.forward = model.explain  # type: ignore[assignment, method-assign]
    torch.onnx.export(
        explained,
        (example,),
        path,
        input_names=["photos"],
        output_names=["logits", "maps", "features"],
        dynamic_shapes={"photos": {0: torch.export.Dim("batch")}},
        external_data=False,
        verbose=False,
    )


class _Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
    """The calibration set, one photo at a time."""

    def __init__(self, photos: Photos) -> None:
        batches = photos.batches(torch.arange(len(photos)).split(1), CPU)
        self.inputs = ({"photos": batch.numpy()} for batch in batches)

    def get_next(self) -> dict[str, Photo] | None:
        return next(self.inputs, None)


def quantize(fp32: Path, int8: Path, photos: Photos) -> None:
    """Write an int8 version of an fp32 model: static, QDQ, one scale per output channel.

    `photos` is the calibration set: the activation ranges are measured on it. The first layer stays
    in fp32, since rounding costs most there. So does the head: the mean of a map is then exactly
    the logit.
    """
    prepared = int8.with_suffix(".prepared.onnx")
    quant_pre_process(str(fp32), str(prepared))
    make_first_layer_exact(prepared)
    nodes = onnx.load(prepared).graph.node
    layers = [node.name for node in nodes if node.op_type == "Conv"]
    pooling = [node.name for node in nodes if node.op_type == "MaxPool"]  # slower in int8
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


def make_first_layer_exact(path: Path) -> None:
    """Round the first layer's weights, after normalisation, so that its sums are exact.

    Its inputs become whole numbers, and its weights multiples of a power of two that is large
    enough for float32 to hold each sum. CPUs and browsers add in different orders, but the
    quantized layers then get the same numbers on all of them; without this, probabilities differ
    by up to 0.05. At the edges, padding differs from the mean pixel by less than half a level.
    """
    model = onnx.load(path)
    layer = next(node for node in model.graph.node if node.op_type == "Conv")
    names = ("mean", "std", *layer.input[1:])
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    arrays = (onnx.numpy_helper.to_array(tensors[name]).astype(np.float64) for name in names)
    mean, std, weight, bias = arrays
    level = np.rint(mean)
    weight /= std
    bias -= (weight * (mean - level)).sum((1, 2, 3))
    largest = (np.abs(weight) * np.maximum(level, 255 - level)).sum((1, 2, 3)) + np.abs(bias)
    unit = 2 ** np.ceil(np.log2(largest / 2**FLOAT32_BITS) + ROUNDING_MARGIN)
    weight, bias = (
        np.rint(values / per) * per
        for values, per in ((weight, unit[:, None, None, None]), (bias, unit))
    )
    for name, values in zip(names, (level, np.ones_like(std), weight, bias), strict=True):
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(model, path)


def outputs_of(
    models: Sequence[Classifier | OnnxModel], photos: Photos
) -> list[tuple[Floats, Floats]]:
    """Return the logits, N×C, and the features, N×512, of each model for the same photos."""
    outputs: list[list[tuple[Floats, Floats]]] = [[] for _ in models]
    plan = torch.arange(len(photos)).split(BATCH)
    batches = photos.batches(plan, CPU)
    for batch in tqdm(batches, "comparing", len(plan), leave=False, disable=None):
        for parts, model in zip(outputs, models, strict=True):
            logits, _, features = run(model, batch)
            parts.append((logits, features))
    columns = (zip(*parts, strict=True) for parts in outputs)
    return [(np.concatenate(logits), np.concatenate(features)) for logits, features in columns]


def run(model: Classifier | OnnxModel, photos: Tensor) -> Outputs:
    """Run PyTorch's model or an exported one on N photos, as `Classifier.explain`."""
    if isinstance(model, OnnxModel):
        return cast(Outputs, model(photos.numpy(), ("logits", "maps", "features")))
    with torch.inference_mode():
        logits, maps, features = model.explain(photos)
    return logits.numpy(), maps.numpy(), features.numpy()


def reason_against_int8(int8: Floats, fp32: Floats, labels: list[int]) -> str:
    """Return why the N×C logits of the int8 model are too far from fp32's; "" if they aren't.

    An answer that becomes correct isn't counted as changed.
    """
    answers = int8.argmax(1)
    changed = int(((answers != fp32.argmax(1)) & (answers != np.array(labels))).sum())
    if changed > max(1, MAX_CHANGED * len(labels)):
        return f"changes the answer to {changed} of {len(labels)} photos"
    moved = float(np.abs(softmax(int8) - softmax(fp32)).mean())
    if not moved <= MAX_MOVED:
        return f"moves probabilities by {moved:.3f} on average"
    return ""
