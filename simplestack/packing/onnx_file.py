"""The ONNX file that is served: exported from a checkpoint, compared with it, and described."""

import json
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch

from simplestack.packing import examples, onnx_export, similarity
from simplestack.packing.bentos import hash_files
from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.serving.inference import Floats, Metadata, OnnxModel
from simplestack.training import calibration
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.model import Classifier

CALIBRATION_PHOTOS = 100
MIN_VALIDATION_PHOTOS = 50
MAX_LOGIT_DIFFERENCE = 1e-3  # between PyTorch and fp32 ONNX
MODEL_INPUT: dict[str, int | str] = {
    "resize": images.RESIZE,  # pixels, the shorter side
    "crop": images.CROP,  # pixels, in the middle
    "filter": "bilinear, antialiased",
    "input": "N×224×224×3 uint8, RGB, upright, transparency on white",
}


class Exported(NamedTuple):
    """The ONNX file to serve, and its outputs for N photos beside PyTorch's."""

    file: Path
    photos: Photos  # the validation photos first
    expected: Floats  # PyTorch's logits, N×C
    logits: Floats  # the file's, N×C
    features: Floats  # the file's, N×512


def export(
    state: Checkpoint, path: Path, data_dir: Path, folder: Path, *, with_examples: bool
) -> Path:
    """Write the best weights of the checkpoint at `path` as ONNX to `folder`; return the file.

    Its metadata contains photos for the page only if `with_examples`. Raises StackError if ONNX and
    PyTorch differ.
    """
    network = Classifier(len(state.classes)).eval()
    network.load_state_dict(state.best)
    photos_of = partial(Photos, data_dir, classes=state.classes, whole=False)
    train, val = state.photos["train"], state.photos["val"]
    count = min(len(train), CALIBRATION_PHOTOS)
    calibration = [train[i * len(train) // count] for i in range(count)]
    # A few validation photos say little about int8, so compare the calibration photos, too.
    photos = photos_of(val + calibration if len(val) < MIN_VALIDATION_PHOTOS else val)
    exported = choose_precision(network, folder, photos_of(calibration), photos)

    bank_photos = photos_of(similarity.choose(train, state.classes))
    print(f"keeping the features of {len(bank_photos)} training photos …")
    ((_, bank),) = onnx_export.outputs_of([OnnxModel(exported.file)], bank_photos)
    similarity.add_bank(exported.file, bank)
    metadata = describe(state, path, exported, bank, with_examples=with_examples)
    write_metadata(exported.file, metadata)
    return exported.file


def choose_precision(
    network: Classifier, folder: Path, calibration: Photos, photos: Photos
) -> Exported:
    """Export a network to `folder` in int8, or in fp32 if int8 changes too many answers.

    Raises StackError if the fp32 export and PyTorch differ.
    """
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    print("exporting to ONNX …")
    onnx_export.to_onnx(network, fp32)
    print("quantizing to int8 …")
    onnx_export.quantize(fp32, int8, calibration)
    print(f"comparing the answers to {len(photos)} photos …")
    models = (network, OnnxModel(fp32), OnnxModel(int8))
    (expected, _), exact, quantized = onnx_export.outputs_of(models, photos)
    difference = float(np.abs(exact[0] - expected).max())
    if not difference <= MAX_LOGIT_DIFFERENCE:  # NaN is neither
        raise StackError(
            f"the exported model differs from PyTorch's by {difference:.2g} in a logit, more than"
            f" {MAX_LOGIT_DIFFERENCE:g}: not packed. Install the versions in requirements.txt"
        )
    reason = onnx_export.reason_against_int8(quantized[0], exact[0], photos.labels.tolist())
    if not reason:
        return Exported(int8, photos, expected, *quantized)
    print(f"note: int8 {reason}, so fp32 is packed")
    return Exported(fp32, photos, expected, *exact)


def describe(
    state: Checkpoint, path: Path, exported: Exported, bank: Floats, *, with_examples: bool
) -> Metadata:
    """Return the metadata of an exported model, whose bank are M×512 features."""
    count = len(val := state.photos["val"])
    expected, logits, features = (outputs[:count] for outputs in exported[2:])
    targets = exported.photos.labels[:count]
    labels = targets.numpy()
    chosen = examples.choose(logits, labels.tolist()) if with_examples else []
    return {
        "classes": state.classes,
        "notice": state.disclaimer,
        "architecture": state.architecture,
        "preprocessing": MODEL_INPUT,
        "precision": exported.file.stem,
        "trained": f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d}",
        "checkpoint_sha256": hash_files(path),
        "epochs": state.epoch,
        "served_epoch": state.best_epoch,
        "validation_photos": count,
        "accuracy_checkpoint": float((expected.argmax(1) == labels).mean()),
        "accuracy_packed": float((logits.argmax(1) == labels).mean()),
        "same_answers": int((logits.argmax(1) == expected.argmax(1)).sum()),
        "temperature": calibration.fit(torch.from_numpy(logits), targets).temperature,
        "unlike": similarity.threshold(bank, features),
        "examples": [examples.encode(exported.photos.data_dir / val[i]) for i in chosen],
    }


def write_metadata(file: Path, metadata: Metadata) -> None:
    """Write the metadata into an ONNX file, each value as JSON."""
    model = onnx.load(file)
    for node in model.graph.node:
        node.ClearField("metadata_props")  # PyTorch's, with paths on this machine
    values = {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()}
    onnx.helper.set_model_props(model, values)
    onnx.save(model, file)
