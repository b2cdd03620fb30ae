"""The packed model: as many threads as there are cores, and answers that can be explained."""

import os

import numpy as np
import pytest

from simplestack.serving.container import cores
from simplestack.serving.inference import OnnxModel, Outputs, answer, rounded


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


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ],
)
def test_threads_fit_the_cpu_quota(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores(tmp_path) == expected
