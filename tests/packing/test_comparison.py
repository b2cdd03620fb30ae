"""The model before beside the new one."""

import shutil

import pytest

from simplestack import files
from simplestack.packing import comparison, onnx_file
from simplestack.packing.bentos import hash_files
from simplestack.serving.inference import OnnxModel
from simplestack.training import checkpoint


@pytest.mark.parametrize(
    ("both", "gained", "lost", "said"),
    [
        (8, 1, 1, "10 validation photos that neither was trained on: accuracy 0.9000 and 0.9000;"),
        (8, 1, 1, "; 1 now right, 1 now wrong: within chance (p = 1)"),
        (90, 5, 0, "; 5 now right, 0 now wrong: within chance (p = 0.062)"),
        (90, 6, 0, "; 6 now right, 0 now wrong: better (p = 0.031)"),
        (90, 0, 6, "; 0 now right, 6 now wrong: WORSE (p = 0.031)"),
        (0, 9, 20, ": within chance (p = 0.061)"),
        (0, 8, 20, ": WORSE (p = 0.036)"),  # R: binom.test(8, 28)
        (0, 0, 0, "on 0 validation photos that neither was trained on: accuracy 0.0000 and 0.0000"),
    ],
)
def test_a_difference_is_judged_by_the_exact_test(both, gained, lost, said):
    right = [(True, True)] * both + [(False, True)] * gained + [(True, False)] * lost
    assert said in comparison.describe(right)


@pytest.fixture
def models(trained, model_file, pictures, tmp_path):
    """A checkpoint and an ONNX file that calls all classes wrong, beside those before."""
    path = shutil.copy(trained, tmp_path / "a b.ckpt")
    onnx, state = path.with_suffix(".onnx"), checkpoint.load(trained)
    old = checkpoint.load(trained)
    old.photos = {**old.photos, "train": state.photos["val"][:2]}  # the others are new to both
    checkpoint.save(files.before(path), old)
    shutil.copy(model_file, onnx)
    metadata = OnnxModel(onnx).metadata
    shutil.copy(onnx, files.before(onnx))
    kept = {**metadata, "checkpoint_sha256": hash_files(files.before(path))}
    onnx_file.write_metadata(files.before(onnx), kept)
    onnx_file.write_metadata(onnx, {**metadata, "classes": metadata["classes"][::-1]})
    return path, onnx, state, shutil.copytree(pictures, tmp_path / "data")


def test_models_are_compared_on_photos_that_neither_learned_and_on_corrections(models):
    path, onnx, state, data = models
    answers = said(OnnxModel(files.before(onnx)), data, state.photos["val"][2:])
    right = sum(label in name for name, label in answers)
    for i, name in enumerate(state.photos["train"][:3]):
        target = data.with_name("data.held-out") / name.split("/")[1]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / name, target / f"{i}.jpg")
    (target / "damaged.jpg").write_bytes(b"damaged")  # is left out
    (none := data.with_name("data.none")).mkdir()
    shutil.copy(data / state.photos["train"][0], none)
    text = comparison.compare(path, onnx, state, data)
    accuracy = f"accuracy {right / 4:.4f} and {1 - right / 4:.4f}"
    assert f"on 4 validation photos that neither was trained on: {accuracy}" in text
    assert f"{4 - right} now right, {right} now wrong" in text
    assert "\nof 3 corrections kept out, right before: " in text
    assert (
        ": fewer than ten prove nothing\nof 1 photos of none of these, called unlike: 0\n" in text
    )
    kept = [path.with_name(f"a b.before.{x}") for x in ("ckpt", "onnx")]
    command = (
        f"mv '{kept[0]}' '{path}' && mv '{kept[1]}' '{onnx}' && python saveToBento.py '{path}'"
    )
    assert text.endswith(f"back: {command}")


def said(model, data, names):
    for name in names:
        pixels = comparison.images.read((data / name).read_bytes())[None]
        yield name, comparison.answer(model.metadata, model(pixels))["label"]


def test_without_both_files_of_the_model_before_nothing_is_compared(models):
    path, onnx, state, data = models
    assert comparison.compare(path, onnx, state, data)
    files.before(onnx).write_bytes(b"damaged")
    assert comparison.compare(path, onnx, state, data) == ""
    shutil.copy(onnx, files.before(onnx))  # of another checkpoint
    assert comparison.compare(path, onnx, state, data) == ""
    files.before(path).unlink()
    assert comparison.compare(path, onnx, state, data) == ""
