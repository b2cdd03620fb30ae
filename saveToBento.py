"""Pack a checkpoint into a BentoML service.

    python saveToBento.py                            # the newest checkpoint in saved_models/
    python saveToBento.py saved_models/NAME.ckpt     # a certain one

Exports the network to ONNX, quantises it to int8, checks on the validation photos that neither
step changes its answers, and builds a Bento around it.
"""

import argparse
import errno
import os
import shlex
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import simplestack

if __name__ == "__main__":
    simplestack.loading("BentoML")

# Before BentoML is imported, which otherwise reports what is built to its makers.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml
import numpy as np

from simplestack.packing import build, local_server, onnx_export
from simplestack.serving.errors import StackError, printable
from simplestack.serving.inference import OnnxModel
from simplestack.serving.settings import Settings
from simplestack.training import checkpoint, folders, model
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.metrics import format_interval

CALIBRATION_PHOTOS = 100
FEW_PHOTOS = 50
MAX_LOGIT_DIFFERENCE = 1e-3  # between PyTorch and fp32 ONNX
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}  # of a disk


def main(argv: list[str] | None = None) -> None:
    """Pack a checkpoint, try the result, and print the commands that serve it."""
    args = parse_arguments(argv)
    path = args.checkpoint or checkpoint.newest(Path("saved_models"))
    state = checkpoint.load(path)
    data_dir = args.data_dir or Path(state.arguments["data_dir"])
    folders.check_recorded(data_dir, state.photos)
    labels = {"checkpoint": build.hash_files(path), "code": build.hash_code()}
    packed = build.find_packed(labels)
    if packed:
        print(f"{path} is packed already.")
    else:
        print(f"Packing {path}")
        with tempfile.TemporaryDirectory() as folder:
            file, metadata = export_model(state, data_dir, Path(folder))
            metadata["checkpoint_sha256"] = labels["checkpoint"]
            metadata["trained"] = f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d}"
            packed = build.build_bento(file, metadata, labels)
    show(packed, state, data_dir)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Pack a checkpoint into a BentoML service.",
        epilog=f"Next: bentoml serve {build.NAME}:latest",
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", help="default: newest in saved_models")
    parser.add_argument("--data-dir", type=Path, help="photos (default: those it was trained on)")
    return parser.parse_args(argv)


def export_model(state: Checkpoint, data_dir: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Export the best weights to `folder`; return the ONNX file to serve and its metadata.

    The file is fp32 if int8 changes too many answers. Raises StackError if ONNX and PyTorch differ.
    """
    classifier = model.Classifier(len(state.classes))
    classifier.load_state_dict(state.best)
    train, val = (
        Photos(data_dir, state.photos[split], state.classes, whole=False)
        for split in folders.SPLITS
    )
    photos, targets = onnx_export.read_photos(val)
    expected = onnx_export.torch_logits(classifier, photos)

    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    onnx_export.to_onnx(classifier, fp32)
    calibration, its_targets = onnx_export.read_photos(train, CALIBRATION_PHOTOS)
    # So few photos tell little about int8: those for its calibration are compared too.
    more = len(targets) < FEW_PHOTOS
    compared = np.concatenate([photos, calibration]) if more else photos
    fp32_logits = onnx_export.onnx_logits(OnnxModel(fp32), compared)
    exported = fp32_logits[: len(targets)]
    difference = float(np.abs(exported - expected).max())
    if not difference <= MAX_LOGIT_DIFFERENCE:  # NaN is neither
        raise StackError(
            f"the exported model differs from PyTorch's by {difference:.2g} in a logit, more than"
            f" {MAX_LOGIT_DIFFERENCE:g}: not packed. Install the versions in requirements.txt"
        )
    onnx_export.quantize(fp32, int8, calibration)
    int8_logits = onnx_export.onnx_logits(OnnxModel(int8), compared)
    labels = targets + its_targets if more else targets
    reason = onnx_export.reason_against_int8(int8_logits, fp32_logits, labels)
    if reason:
        print(f"note: int8 {reason}, so fp32 is packed")
    file, served = (fp32, exported) if reason else (int8, int8_logits[: len(targets)])
    return file, {
        "classes": state.classes,
        "notice": state.notice,
        "architecture": state.architecture,
        "precision": file.stem,
        "validation_photos": len(targets),
        "accuracy_checkpoint": float((expected.argmax(1) == targets).mean()),
        "accuracy_packed": float((served.argmax(1) == targets).mean()),
        "same_answers": int((served.argmax(1) == expected.argmax(1)).sum()),
        "largest_logit_difference_fp32": difference,
        "largest_logit_difference_packed": float(np.abs(served - expected).max()),
        "epochs": state.epoch,
        "served_epoch": state.best_epoch,
    }


def show(packed: bentoml.Bento, state: Checkpoint, data_dir: Path) -> None:
    """Predict one photo with the packed service; print where it is and how to serve it."""
    metadata: dict[str, Any] = dict(bentoml.models.get(packed.info.all_models[0].tag).info.metadata)
    photo = data_dir / state.photos["val"][0]
    saved_path = str(Path(packed.path).absolute())  # BENTOML_HOME may be relative
    with local_server.serve(saved_path) as url:
        answer = local_server.predict(url, photo)
    name = printable(os.fsencode(photo).decode(errors="backslashreplace"))  # if not UTF-8
    accuracy, count = metadata["accuracy_packed"], metadata["validation_photos"]
    print(
        f"\nvalidation accuracy: {metadata['accuracy_checkpoint']:.4f} before packing,"
        f" {accuracy:.4f} packed ({metadata['precision']}; {format_interval(accuracy, count)});"
        f" the same answer to {metadata['same_answers']} of {count} photos"
        f"\n{name} → {answer}"
        f"\ntag: {packed.tag}\nsaved path: {saved_path}"
        f"\n\nNext: bentoml serve {build.NAME}:latest"
        f'\nthen: curl -X POST http://localhost:{Settings.port}/predict -H "Content-Type: image/*"'
        f" --data-binary {shlex.quote(f'@{name}')}"
    )


if __name__ == "__main__":
    local_server.stop_like_ctrl_c()
    try:
        main()
    except StackError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in FULL:
            raise
        sys.exit(f"error: can't pack ({error}): make room there, or choose another BENTOML_HOME")
    except KeyboardInterrupt:
        print("\nStopped: run it again to pack.", file=sys.stderr)
        sys.exit(130)
