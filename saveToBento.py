"""Pack a checkpoint into a BentoML service.

    python saveToBento.py                            # the newest checkpoint in saved_models/
    python saveToBento.py saved_models/NAME.ckpt     # that one

Exports the network to ONNX, quantises it to int8, proves on the validation photos that neither
step changed its answers, and builds a Bento with the service around it.
"""

import argparse
import os
import shlex
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

# Before BentoML is imported: it reports what people build to its makers unless told not to.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml
import numpy as np

from simplestack.packing import build, local_server, onnx_export
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel
from simplestack.training import checkpoint, data, model
from simplestack.training.checkpoint import Checkpoint

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
    labels = {"checkpoint": build.fingerprint(path), "code": build.code()}
    packed = build.packed_before(labels)
    if packed:
        print(f"{path} is packed already.")
    else:
        print(f"Packing {path}")
        with tempfile.TemporaryDirectory() as folder:
            file, metadata = export_model(state, data_dir, Path(folder))
            metadata["checkpoint_sha256"] = labels["checkpoint"]
            metadata["trained"] = f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d}"
            packed = build.build(file, metadata, labels)
    show(packed, state, data_dir)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Pack a checkpoint into a BentoML service.",
        epilog=f"Next: bentoml serve {build.NAME}:latest",
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
    """Export the best weights to `folder`; return the ONNX file to serve and what is known of it.

    Raises StackError if ONNX and PyTorch differ. Where int8 answers otherwise, fp32 is taken.
    """
    classifier = model.Classifier(len(state.classes))
    classifier.load_state_dict(state.best)
    train, val = (data.Photos(data_dir, state.photos[s], state.classes) for s in data.SPLITS)
    photos, truth = onnx_export.read_photos(val)
    expected = onnx_export.torch_logits(classifier, photos)

    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    onnx_export.to_onnx(classifier, fp32)
    exported = onnx_export.onnx_logits(OnnxModel(fp32), photos)
    difference = float(np.abs(exported - expected).max())
    if difference > MOST_LOGIT_DIFFERENCE:
        raise StackError(
            f"the exported model differs from PyTorch's by {difference:.2g} in a logit, more than"
            f" {MOST_LOGIT_DIFFERENCE:g}: not packed. Install the versions in requirements.txt"
        )
    onnx_export.quantize(fp32, int8, onnx_export.read_photos(train, CALIBRATION_PHOTOS)[0])
    quantized = onnx_export.onnx_logits(OnnxModel(int8), photos)

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


def show(packed: bentoml.Bento, state: Checkpoint, data_dir: Path) -> None:
    """Let the packed service answer once, and say where it is and how to serve it."""
    known: dict[str, Any] = dict(bentoml.models.get(packed.info.all_models[0].tag).info.metadata)
    photo = data_dir / state.photos["val"][0]
    saved_path = str(Path(packed.path).absolute())  # BENTOML_HOME may be relative
    with local_server.serve(saved_path) as url:
        answer = local_server.predict(url, photo)
    name = os.fsencode(photo).decode(errors="backslashreplace")  # it may be in any encoding
    print(
        f"\nvalidation accuracy: {known['accuracy_checkpoint']:.4f} before packing,"
        f" {known['accuracy_packed']:.4f} packed ({known['precision']}); the same answer to"
        f" {known['same_answers']} of {known['validation_photos']} photos"
        f"\n{name} → {answer}"
        f"\ntag: {packed.tag}\nsaved path: {saved_path}"
        f"\n\nNext: bentoml serve {build.NAME}:latest"
        f'\nthen: curl -X POST http://localhost:5000/predict -H "Content-Type: image/*"'
        f" --data-binary {shlex.quote(f'@{name}')}"
    )


if __name__ == "__main__":
    local_server.stop_as_ctrl_c_does()
    try:
        main()
    except StackError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped: run it again to pack.", file=sys.stderr)
        sys.exit(130)
