"""Pack a checkpoint into a BentoML service.

    python saveToBento.py                            # the newest checkpoint in saved_models/
    python saveToBento.py saved_models/NAME.ckpt     # that one

Exports the network to ONNX, quantises it to int8, proves on the validation photos that neither
step changed its answers, and builds a Bento with the service around it.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from datetime import datetime
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

# Before BentoML is imported: it reports what people build to its makers unless told not to.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml
import numpy as np
from packaging.requirements import Requirement

from simplestack import StackError, checkpoint, data, export, heroku, model, serving
from simplestack.checkpoint import Checkpoint
from simplestack.inference import OnnxModel

BENTO = "ant_or_bee_classifier"
MODEL = "ant_or_bee_resnet18"
PROJECT = Path(__file__).parent
SERVED = (
    "service.py",
    "gunicorn.conf.py",
    "simplestack/__init__.py",
    "simplestack/container.py",
    "simplestack/gate.py",
    "simplestack/heroku.py",
    "simplestack/images.py",
    "simplestack/inference.py",
    "simplestack/page.py",
    "simplestack/settings.py",
    "simplestack/web/docs.html",
    "simplestack/web/index.html",
)
PACKAGES = ("bentoml", "gunicorn", "numpy", "onnxruntime", "pillow")  # what those files import
CALIBRATION_PHOTOS = 100
MOST_LOGIT_DIFFERENCE = 1e-3  # between PyTorch and fp32 ONNX
MOST_CHANGED_ANSWERS = 1  # by int8, on the validation photos


def main(argv: list[str] | None = None) -> None:
    """Pack, from the command line to the commands that serve the result."""
    args = parse_arguments(argv)
    path = args.checkpoint or checkpoint.newest(Path("saved_models"))
    state = checkpoint.load(path)
    data_dir = args.data_dir or Path(state.arguments["data_dir"])
    data.check_recorded(data_dir, state.photos)
    labels = {"checkpoint": fingerprint(path), "code": fingerprint(*(PROJECT / f for f in SERVED))}
    bento = packed_before(labels)
    if bento:
        print(f"{path} is packed already.")
    else:
        print(f"Packing {path}")
        with tempfile.TemporaryDirectory() as folder:
            file, metadata = export_model(state, data_dir, Path(folder))
            metadata["checkpoint_sha256"] = labels["checkpoint"]
            metadata["trained"] = f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d}"
            bento = build(file, metadata, labels)
    show(bento, state, data_dir)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Pack a checkpoint into a BentoML service.",
        epilog=f"Next: bentoml serve {BENTO}:latest",
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        help="what train.py wrote (default: the newest in saved_models)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="the photos to check the packed model with (default: those it was trained on)",
    )
    return parser.parse_args(argv)


def export_model(state: Checkpoint, data_dir: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Export the best weights to `folder`; give the ONNX file to serve and what is known of it.

    Raises StackError where ONNX and PyTorch differ. Where int8 answers otherwise, fp32 is taken.
    """
    classifier = model.Classifier(len(state.classes))
    classifier.load_state_dict(state.best)
    train, val = (data.Photos(data_dir, state.photos[s], state.classes) for s in data.SPLITS)
    photos, truth = export.read_photos(val)
    expected = export.torch_logits(classifier, photos)

    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    export.to_onnx(classifier, fp32)
    exported = export.onnx_logits(OnnxModel(fp32), photos)
    difference = float(np.abs(exported - expected).max())
    if difference > MOST_LOGIT_DIFFERENCE:
        raise StackError(
            f"the exported model differs from PyTorch's by {difference:.2g} in a logit, more than"
            f" {MOST_LOGIT_DIFFERENCE:g}: not packed. Install the versions in requirements.txt"
        )
    export.quantize(fp32, int8, export.read_photos(train, CALIBRATION_PHOTOS)[0])
    quantized = export.onnx_logits(OnnxModel(int8), photos)

    changed = int((quantized.argmax(1) != exported.argmax(1)).sum())
    use_int8 = changed <= MOST_CHANGED_ANSWERS
    if not use_int8:
        print(f"note: int8 changes the answer to {changed} photos, so fp32 is packed")
    served = quantized if use_int8 else exported
    return int8 if use_int8 else fp32, {
        "classes": state.classes,
        "notice": state.notice,
        "architecture": state.architecture,
        "precision": "int8" if use_int8 else "fp32",
        "validation_photos": len(truth),
        "accuracy_checkpoint": float((expected.argmax(1) == truth).mean()),
        "accuracy_packed": float((served.argmax(1) == truth).mean()),
        "same_answers": int((served.argmax(1) == expected.argmax(1)).sum()),
        "largest_logit_difference_fp32": difference,
        "largest_logit_difference_packed": float(np.abs(served - expected).max()),
        "epochs": state.epoch,
    }


def build(file: Path, metadata: dict[str, Any], labels: dict[str, str]) -> bentoml.Bento:
    """Save the model in BentoML's store and build the Bento around it: both, or neither."""
    classes = " and ".join(metadata["classes"])
    with bentoml.models.create(MODEL, labels=labels, metadata=metadata) as stored:
        shutil.copy(file, stored.path_of("model.onnx"))
    try:
        # From a folder of its own, so that nothing gets in but what is named here.
        with tempfile.TemporaryDirectory() as folder:
            for name in SERVED:
                target = Path(folder, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(PROJECT / name, target)
            bento = bentoml.build(
                "service:AntOrBeeClassifier",
                build_ctx=folder,
                labels=labels,
                description=f"Tells {classes} apart. {metadata['notice']}",
                python={"packages": pinned_requirements(), "lock_packages": False},
            )
        # The model itself too, so that the saved path is all that serving or an image needs.
        bentoml.models.BentoModel(stored.tag).resolve(bento.path_of("models"))
        heroku.prepare(Path(bento.path))
    except BaseException:
        bentoml.models.delete(stored.tag)
        raise
    return bento


def pinned_requirements() -> list[str]:
    """Pin what is served, and all below it, at the versions that are installed and tested here."""
    pins: dict[str, str] = {}
    todo = [Requirement(name) for name in PACKAGES]
    while todo:
        requirement = todo.pop()
        package = distribution(requirement.name)
        pins[requirement.name.lower().replace("_", "-")] = package.version
        for line in package.requires or []:
            below = Requirement(line)
            extras = requirement.extras or {""}
            wanted = not below.marker or any(below.marker.evaluate({"extra": e}) for e in extras)
            if wanted and below.name.lower().replace("_", "-") not in pins:
                todo.append(below)
    return [f"{name}=={version}" for name, version in sorted(pins.items())]


def packed_before(labels: dict[str, str]) -> bentoml.Bento | None:
    """Find out whether the latest Bento already holds this checkpoint and this code."""
    try:
        bento = bentoml.get(f"{BENTO}:latest")
    except bentoml.exceptions.NotFound:
        return None
    return bento if bento.info.labels == labels else None


def fingerprint(*paths: Path) -> str:
    """Give the SHA-256 of some files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def show(bento: bentoml.Bento, state: Checkpoint, data_dir: Path) -> None:
    """Let the packed service answer once, and say where it is and how to serve it."""
    packed: dict[str, Any] = dict(bentoml.models.get(bento.info.all_models[0].tag).info.metadata)
    photo = data_dir / state.photos["val"][0]
    with serving.serve(bento.path) as url:
        answer = serving.predict(url, photo)
    tag, saved_path = str(bento.tag), str(bento.path)
    print(
        f"\nvalidation accuracy: {packed['accuracy_checkpoint']:.4f} before packing,"
        f" {packed['accuracy_packed']:.4f} packed ({packed['precision']}); the same answer to"
        f" {packed['same_answers']} of {packed['validation_photos']} photos"
        f"\n{photo} → {answer}"
        f"\ntag: {tag}\nsaved path: {saved_path}"
        f"\n\nNext: bentoml serve {BENTO}:latest"
        f'\nthen: curl -X POST http://localhost:5000/predict -H "Content-Type: image/*"'
        f" --data-binary @{photo}"
    )


if __name__ == "__main__":
    try:
        main()
    except StackError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped: nothing was packed.", file=sys.stderr)
        sys.exit(130)
