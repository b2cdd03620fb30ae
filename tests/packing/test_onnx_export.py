"""The exported network answers as PyTorch does, or isn't packed."""

import shutil

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from simplestack.packing import onnx_export, onnx_file
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel
from simplestack.training import checkpoint


def test_first_layer_has_the_same_sums_in_any_order(exported, tmp_path):
    quant_pre_process(str(exported / "fp32.onnx"), str(tmp_path / "exact.onnx"))
    photos = np.random.default_rng(0).integers(0, 256, (2, 3, 224, 224))
    photos[1] = 255 * (photos[1] > 127)
    before, _ = first_layer(tmp_path / "exact.onnx", photos)
    onnx_export.make_first_layer_exact(tmp_path / "exact.onnx")
    double, single = first_layer(tmp_path / "exact.onnx", photos)
    assert torch.equal(double, single.double())
    middle = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # beyond the padding
    assert torch.allclose(double[middle], before[middle], atol=0.01)
    assert torch.allclose(double, before, atol=0.1)


def first_layer(path, photos):
    """Return the outputs of a model's first layer, computed in double and in single precision."""
    graph = onnx.load(path).graph
    layer = next(node for node in graph.node if node.op_type == "Conv")
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    names = ("mean", "std", *layer.input[1:])
    mean, std, weight, bias = (torch.from_numpy(arrays[name].copy()) for name in names)
    x = (torch.from_numpy(photos).float() - mean) / std
    return [
        nn.functional.conv2d(x.to(kind), weight.to(kind), bias.to(kind), 2, 3)
        for kind in (torch.double, torch.float)
    ]


def test_fp32_is_packed_if_int8_moves_too_much_or_nothing_if_fp32_does(
    exported, trained, pictures, tmp_path, *, monkeypatch, capsys
):
    def copy(_, path, *__):
        shutil.copy(exported / path.name, path)

    monkeypatch.setattr(onnx_export, "to_onnx", copy)
    monkeypatch.setattr(onnx_export, "quantize", copy)
    monkeypatch.setattr(onnx_export, "MAX_MOVED", -1)
    state = checkpoint.load(trained)
    state.photos = {split: names[::3] for split, names in state.photos.items()}
    arguments = (state, trained, pictures, tmp_path)
    file = onnx_file.export(*arguments, with_examples=False)
    metadata = OnnxModel(file).metadata
    assert (file.name, metadata["precision"]) == ("fp32.onnx", "fp32")
    assert "so fp32 is packed" in capsys.readouterr().out
    assert metadata["examples"] == []
    monkeypatch.setattr(onnx_file, "MAX_LOGIT_DIFFERENCE", 1e-12)
    with pytest.raises(StackError, match="not packed"):
        onnx_file.export(*arguments, with_examples=False)


def logits(*answers):
    """Return logits of two classes that are sure of these answers."""
    return 20 * np.eye(2, dtype=np.float32)[list(answers)]


@pytest.mark.parametrize(
    ("int8", "labels", "reason"),
    [
        (logits(*[0] * 300), [0] * 300, ""),
        (logits(*[1] * 2, *[0] * 298), [0] * 300, ""),
        (logits(*[1] * 4, *[0] * 296), [0] * 300, "changes the answer to 4 of 300 photos"),
        (logits(*[1] * 4, *[0] * 296), [1] * 4 + [0] * 296, ""),  # they became right
        (logits(1, 1, *[0] * 8), [0] * 10, "changes the answer to 2 of 10 photos"),
        (logits(*[0] * 10) / 20, [0] * 10, "moves probabilities by 0.269 on average"),
        (np.full((10, 2), np.nan, np.float32), [0] * 10, "moves probabilities by nan on average"),
    ],
)
def test_int8_is_accepted_by_its_rate_of_changes(int8, labels, reason):
    assert onnx_export.reason_against_int8(int8, logits(*[0] * len(labels)), labels) == reason
