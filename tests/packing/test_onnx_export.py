"""The exported network answers as PyTorch does, or isn't packed."""

from pathlib import Path

import numpy as np
import pytest

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
    expected = softmax(onnx_export.torch_logits(network, photos))
    assert np.abs(softmax(packed(photos)[0]) - expected).max() < 0.05


def test_model_that_differs_from_pytorch_is_rejected(trained, tmp_path, monkeypatch):
    state = checkpoint.load(trained)
    monkeypatch.setattr(saveToBento, "MAX_LOGIT_DIFFERENCE", 1e-12)
    with pytest.raises(StackError, match="not packed"):
        saveToBento.export_model(state, Path(state.arguments["data_dir"]), tmp_path)


def test_fp32_is_packed_if_int8_answers_differently(trained, tmp_path, monkeypatch, capsys):
    state = checkpoint.load(trained)
    monkeypatch.setattr(saveToBento, "MAX_CHANGED_ANSWERS", -1)
    file, metadata = saveToBento.export_model(state, Path(state.arguments["data_dir"]), tmp_path)
    assert (file.name, metadata["precision"]) == ("fp32.onnx", "fp32")
    assert "so fp32 is packed" in capsys.readouterr().out
