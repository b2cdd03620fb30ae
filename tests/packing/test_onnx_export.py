"""The exported network answers as PyTorch does, or isn't packed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

import saveToBento
from simplestack.packing import onnx_export
from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel, softmax
from simplestack.training import checkpoint, model


def test_packed_model_answers_as_pytorch_does(bento, trained, pictures):
    state = checkpoint.load(trained)
    network = model.Classifier(2)
    network.load_state_dict(state.best)
    photos = np.stack([images.read(p.read_bytes()) for p in sorted(pictures.glob("val/*/*.jpg"))])
    packed = OnnxModel(next(bento.glob("models/*/*/model.onnx")))
    expected = softmax(onnx_export.run(network.eval(), photos)[0])
    assert np.abs(softmax(packed(photos)[0]) - expected).max() < 0.05


def test_first_layer_has_the_same_sums_in_any_order(trained, tmp_path):
    network = model.Classifier(2).eval()
    network.load_state_dict(checkpoint.load(trained).best)
    onnx_export.to_onnx(network, tmp_path / "fp32.onnx")
    quant_pre_process(str(tmp_path / "fp32.onnx"), str(tmp_path / "exact.onnx"))
    photos = np.random.default_rng(0).integers(0, 256, (2, 3, 224, 224))
    photos[1] = 255 * (photos[1] > 127)
    before, _ = first_layer(tmp_path / "exact.onnx", photos)
    onnx_export.make_first_layer_exact(tmp_path / "exact.onnx")
    double, single = first_layer(tmp_path / "exact.onnx", photos)
    assert torch.equal(double, single.double())
    middle = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # beyond the padding
    assert torch.allclose(double[middle], before[middle], atol=0.01)
    assert torch.allclose(double, before, atol=0.1)


def first_layer(path: Path, photos: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of a model's first layer, computed in double and in single precision."""
    graph = onnx.load(path).graph
    layer = next(node for node in graph.node if node.op_type == "Conv")
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    names = ("model.mean", "model.std", *layer.input[1:])
    mean, std, weight, bias = (torch.from_numpy(stored[name].copy()) for name in names)
    x = (torch.from_numpy(photos).float() - mean) / std

    def convolve(kind: torch.dtype) -> torch.Tensor:
        return nn.functional.conv2d(x.to(kind), weight.to(kind), bias.to(kind), 2, 3)

    return convolve(torch.double), convolve(torch.float)


def test_model_that_differs_from_pytorch_is_rejected(trained, tmp_path, monkeypatch):
    state = checkpoint.load(trained)
    monkeypatch.setattr(saveToBento, "MAX_LOGIT_DIFFERENCE", 1e-12)
    with pytest.raises(StackError, match="not packed"):
        saveToBento.export_model(
            state, Path(state.arguments["data_dir"]), tmp_path, with_examples=False
        )


def test_fp32_is_packed_if_int8_answers_differently(trained, tmp_path, monkeypatch, capsys):
    state = checkpoint.load(trained)
    monkeypatch.setattr(onnx_export, "MAX_MOVED", -1)
    file, metadata = saveToBento.export_model(
        state, Path(state.arguments["data_dir"]), tmp_path, with_examples=False
    )
    assert (file.name, metadata["precision"]) == ("fp32.onnx", "fp32")
    assert "so fp32 is packed" in capsys.readouterr().out


def logits(*answers: int) -> np.ndarray:
    """Return logits of two classes that are sure of these answers."""
    return 20 * np.eye(2, dtype=np.float32)[list(answers)]


@pytest.mark.parametrize(
    ("int8", "labels", "reason"),
    [
        (logits(*[0] * 300), [0] * 300, ""),
        (logits(*[1] * 2, *[0] * 298), [0] * 300, ""),
        (logits(*[1] * 4, *[0] * 296), [0] * 300, "4 of 300 photos"),
        (logits(*[1] * 4, *[0] * 296), [1] * 4 + [0] * 296, ""),  # they became right
        (logits(1, 1, *[0] * 8), [0] * 10, "2 of 10 photos"),
        (logits(*[0] * 10) / 20, [0] * 10, "moves probabilities"),
        (np.full((10, 2), np.nan, np.float32), [0] * 10, "moves probabilities"),
    ],
)
def test_int8_is_accepted_by_its_rate_of_changes(int8, labels, reason):
    said = onnx_export.reason_against_int8(int8, logits(*[0] * len(labels)), labels)
    assert reason in said
    assert bool(reason) == bool(said)
