"""The bank of training photos in the packed model, and the threshold for unlike photos."""

import shutil
from collections import Counter

import numpy as np
import onnx
import pytest

from simplestack.packing import similarity
from simplestack.serving.inference import OnnxModel


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_the_model_returns_the_largest_cosine_with_a_row_of_the_bank(exported, tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "model.onnx"
    shutil.copy(exported / "fp32.onnx", path)
    photos = rng.integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    logits, maps, features = OnnxModel(path)(photos, None)
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    bank = np.vstack([unit(rng.random((5, 512))), features[:1]])
    similarity.add_bank(path, bank)
    packed, every = OnnxModel(path)(photos), OnnxModel(path)(photos, None)
    assert (len(packed), len(every)) == (3, 4)  # the features come last, for predict.py --next
    assert np.array_equal(every[3], features)
    assert np.array_equal(packed[0], logits)
    assert np.array_equal(packed[1], maps)
    assert np.allclose(packed[2], (features @ bank.T).max(1), atol=1e-6)
    assert packed[2][0] == pytest.approx(1, abs=1e-6)


def test_a_photo_in_which_nothing_is_seen_is_similar_to_nothing(exported, tmp_path):
    network, path = onnx.load(exported / "fp32.onnx"), tmp_path / "model.onnx"
    tensors = {tensor.name: tensor for tensor in network.graph.initializer}
    bias = tensors["resnet.layer4.1.conv2.weight_bias"]  # of the last layer before a ReLU
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(512, -1e6, np.float32), bias.name))
    onnx.save(network, path)
    similarity.add_bank(path, unit(np.ones((2, 512))))
    assert OnnxModel(path)(np.zeros((1, 224, 224, 3), np.uint8))[2].tolist() == [0]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([1, 2], [1, 2]), ([3000, 600, 5], [498, 497, 5]), ([2] * 1200, [1] * 1200)],
)
def test_the_bank_has_all_photos_if_they_are_few_or_as_many_of_each_class(counts, expected):
    classes = [f"{i:04}" for i in range(len(counts))]
    names = [f"train/{classes[k]}/{i}.jpg" for k, n in enumerate(counts) for i in range(n)]
    chosen = similarity.choose(names, classes)
    assert len(set(chosen)) == len(chosen)
    counted = Counter(name.split("/")[1] for name in chosen)
    assert [counted[x] for x in classes] == expected
    assert chosen == similarity.choose(names, classes)


def around(*centres, count, spread=0.3):
    """Return features around some axes, about 0.9 similar to each other."""
    rng = np.random.default_rng(0)
    return unit(
        np.vstack([np.eye(512)[c] + spread * unit(rng.random((count, 512))) for c in centres])
    )


def test_the_threshold_is_a_percentile_of_the_training_photos_own_similarities():
    bank = around(0, 1, count=50)
    unlike = similarity.threshold(bank, np.vstack([bank[:9], unit(np.eye(512)[[7]])]))
    nearest = [max(x @ y for j, y in enumerate(bank) if j != i) for i, x in enumerate(bank)]
    assert sum(x < unlike["threshold"] for x in nearest) == 5  # of 100
    assert unlike["validation_photos_unlike"] == pytest.approx(0.1)
    assert unlike["chosen_by"].startswith("percentile 5 of the similarities of 100 training photos")
    copies = similarity.threshold(np.vstack([bank, bank]), bank)  # which don't raise it
    assert copies["threshold"] == pytest.approx(unlike["threshold"], abs=1e-3)


@pytest.mark.parametrize(
    ("bank", "reason"),
    [
        (around(0, count=1), "fewer than 40 photos"),
        (around(0, count=39), "fewer than 40 photos"),
        (around(0, count=1).repeat(40, 0), "look alike"),  # all the same
        (around(0, count=40, spread=0.01), "look alike"),
        (np.zeros((40, 512), np.float32), ""),  # sees nothing: nothing is unlike
    ],
)
def test_no_threshold_without_sense(bank, reason):
    unlike = similarity.threshold(bank, bank)
    assert unlike["threshold"] == (None if reason else 0)
    assert reason in unlike.get("reason", "")
