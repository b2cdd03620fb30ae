"""The model: answers, maps that explain them, and the threshold of unlike photos."""

import numpy as np
import onnx
import pytest

from simplestack.serving import inference
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel, answer, rounded, softmax

CLASSES = ["ant", "bee", "wasp"]


def test_the_mean_of_a_map_is_the_logit_and_each_core_has_a_thread(model_file, monkeypatch):
    monkeypatch.setattr(inference, "cores", lambda: 3)
    model = OnnxModel(model_file)
    photos = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    logits, maps, _ = model(photos)
    assert np.allclose(maps.mean((2, 3)), logits, atol=1e-4)
    assert model.session.get_session_options().intra_op_num_threads == 3


def answer_to(similarity=0.5, top_k=None, logits=(1, 3, -9), threshold=None, temperature=1):
    outputs = np.float32([logits]), np.zeros((1, 3, 7, 7), np.float32), np.float32([similarity])
    metadata = {"classes": CLASSES, "temperature": temperature, "unlike": {"threshold": threshold}}
    return answer(metadata, outputs, top_k)


def test_the_answer_is_the_most_probable_class_in_six_digits():
    assert answer_to(1 / 3, threshold=0.7) == {
        "label": "bee",
        "confidence": 0.880792,
        "probabilities": {"ant": 0.119202, "bee": 0.880792, "wasp": 0.000005},
        "similarity": 0.333333,
        "unlike": True,
    }
    assert answer_to(logits=(2, 2, 2))["label"] == "ant"  # of equal ones the first


def test_a_temperature_divides_the_logits_and_changes_no_label():
    tempered, plain = answer_to(temperature=2), answer_to(logits=(0.5, 1.5, -4.5))
    assert tempered == plain
    assert (tempered["label"], tempered["confidence"]) == ("bee", 0.729736)


@pytest.mark.parametrize(
    ("similarity", "threshold", "expected"),
    [
        (0.7, 0.7, (0.7, False)),
        (0.699999, 0.7, (0.699999, True)),
        (1.000002, 0.7, (1, False)),  # rounded by the network
        (0.1, None, (0.1, None)),
    ],
)
def test_a_photo_below_the_threshold_is_unlike(similarity, threshold, expected):
    result = answer_to(similarity, threshold=threshold)
    assert (result["similarity"], result["unlike"]) == expected


def test_numbers_are_rounded_as_they_are_printed():
    assert str(rounded(np.array([[0.1, -1 / 3]], dtype=np.float32))) == "[[0.1, -0.333333]]"


def test_probabilities_of_extreme_logits_add_up_to_1():
    probabilities = softmax(np.float32([[1000, 999, -1000], [-3e38, -3e38, -3e38]]))
    assert probabilities.sum(axis=1) == pytest.approx([1, 1])
    assert probabilities[0] == pytest.approx([0.731059, 0.268941, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("top_k", "named"), [(1, "bee"), (2, "bee ant"), (9, "bee ant wasp"), (None, "ant bee wasp")]
)
def test_top_k_lists_the_most_probable_classes_first(top_k, named):
    result = answer_to(top_k=top_k)
    assert (result["label"], list(result["probabilities"])) == ("bee", named.split())


@pytest.mark.parametrize("damage", ["missing", "cut off", "its metadata", "without metadata"])
def test_a_model_that_is_missing_or_damaged_is_one_clear_line(model_file, tmp_path, damage):
    path, data = tmp_path / "model.onnx", model_file.read_bytes()
    if damage == "without metadata":
        network = onnx.load(model_file)
        network.ClearField("metadata_props")
        onnx.save(network, path)
    elif damage != "missing":
        path.write_bytes(data[:-1000] if damage == "cut off" else data[:-1] + b"x")
    with pytest.raises(StackError, match=f"^the packed model {path} is missing or damaged: pack"):
        OnnxModel(path).metadata  # noqa: B018
