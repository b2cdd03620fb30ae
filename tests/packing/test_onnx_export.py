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
    expected = softmax(onnx_export.run(network.eval(), photos)[0])
    assert np.abs(softmax(packed(photos)[0]) - expected).max() < 0.05


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
