"""The packed model: answers that can be explained, and a threshold of what is unlike."""

import numpy as np
import pytest

from simplestack.serving import inference
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel, Outputs, answer, rounded, softmax


def test_packed_explanation_is_the_prediction(bento):
    photos = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    logits, maps, _ = OnnxModel(next(bento.glob("models/*/*/model.onnx")))(photos)
    assert np.allclose(maps.mean((2, 3)), logits, atol=1e-4)


def outputs(similarity: float) -> Outputs:
    logits, maps = np.float32([[1, 3, -9]]), np.zeros((1, 3, 7, 7), np.float32)
    return logits, maps, np.float32([similarity])


def test_the_answer_is_the_most_probable_class_in_six_digits():
    about = {"classes": ["ant", "bee", "wasp"], "unlike": {"threshold": 0.7}}
    assert answer(about, outputs(1 / 3)) == {
        "label": "bee",
        "confidence": 0.880792,
        "probabilities": {"ant": 0.119202, "bee": 0.880792, "wasp": 0.000005},
        "similarity": 0.333333,
        "unlike": True,
    }


@pytest.mark.parametrize(
    ("similarity", "about", "expected"),
    [
        (0.7, {"threshold": 0.7}, (0.7, False)),
        (0.699999, {"threshold": 0.7}, (0.699999, True)),
        (1.000002, {"threshold": 0.7}, (1, False)),  # rounded by the network
        (0.1, {"reason": "it was trained on fewer than 20 photos"}, (0.1, None)),
    ],
)
def test_a_photo_below_the_threshold_is_unlike(similarity, about, expected):
    said = answer({"classes": ["ant", "bee", "wasp"], "unlike": about}, outputs(similarity))
    assert (said["similarity"], said["unlike"]) == expected


def test_numbers_are_rounded_as_they_are_printed():
    assert str(rounded(np.array([[0.1, -1 / 3]], dtype=np.float32))) == "[[0.1, -0.333333]]"


def test_probabilities_add_up_to_1_whatever_the_logits():
    probabilities = softmax(np.float32([[1000, 999, -1000], [-3e38, -3e38, -3e38]]))
    assert probabilities.sum(axis=1) == pytest.approx([1, 1])
    assert probabilities[0] == pytest.approx([0.731059, 0.268941, 0], abs=1e-6)


@pytest.mark.parametrize(("top_k", "named"), [(1, ["bee"]), (2, ["bee", "ant"]), (9, 3), (None, 3)])
def test_so_many_classes_are_named_the_most_probable_first(top_k, named):
    said = answer({"classes": ["ant", "bee", "wasp"], "unlike": {}}, outputs(0.5), top_k)
    assert said["label"] == "bee"
    assert list(said["probabilities"]) == (
        named if top_k in {1, 2} else ["bee", "ant", "wasp"] if top_k else ["ant", "bee", "wasp"]
    )


def test_of_equal_classes_the_first_is_the_answer():
    even = np.float32([[2, 2, 2]]), *outputs(0.5)[1:]
    assert answer({"classes": ["ant", "bee", "wasp"], "unlike": {}}, even)["label"] == "ant"


def test_a_model_that_was_changed_is_damaged(tmp_path):
    file, about = tmp_path / "model.onnx", {"classes": ["ants", "bees"], "unlike": {}}
    file.write_bytes(b"model")
    packed = inference.checksum(file, about)
    inference.verify(file, dict(reversed(about.items())), packed)
    with pytest.raises(StackError, match=r"^the packed model is damaged: pack it again$"):
        inference.verify(file, about | {"classes": ["bees", "ants"]}, packed)
    file.write_bytes(b"other")
    with pytest.raises(StackError, match="damaged"):
        inference.verify(file, about, packed)


def test_a_model_takes_a_thread_for_each_core(bento, monkeypatch):
    monkeypatch.setattr(inference, "cores", lambda: 3)
    options = OnnxModel(next(bento.glob("models/*/*/model.onnx"))).session.get_session_options()
    assert options.intra_op_num_threads == 3
