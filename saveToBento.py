"""Pack a checkpoint into a BentoML service.

    python saveToBento.py                            # the newest checkpoint in saved_models/
    python saveToBento.py saved_models/NAME.ckpt     # a certain one

Exports the network to ONNX, quantises it to int8, checks on the validation photos that neither
step changes its answers, and builds a Bento around it.
"""

import argparse
import os
import shlex
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from simplestack import cli

if __name__ == "__main__":
    cli.start("bentoml")

# Before BentoML is imported, which otherwise reports what is built to its makers.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml
import numpy as np

from simplestack.packing import bentos, examples, local_server, onnx_export, similarity
from simplestack.serving.errors import StackError, printable
from simplestack.serving.inference import OnnxModel
from simplestack.serving.settings import Settings
from simplestack.training import checkpoint, folders, model, sample
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.metrics import format_interval

CALIBRATION_PHOTOS = 100
FEW_PHOTOS = 50
ONE_OF_THE_TUTORIALS = "val/ants/10308379_1b6c72e180.jpg"  # whose photos are public anyway
MAX_LOGIT_DIFFERENCE = 1e-3  # between PyTorch and fp32 ONNX


def main(argv: list[str] | None = None) -> None:
    """Pack a checkpoint if it isn't, try the result, and print the commands that serve it."""
    args = parse_arguments(argv)
    path = args.checkpoint or checkpoint.newest(Path("saved_models"))
    state = checkpoint.load(path)
    data_dir = args.data_dir or Path(state.arguments["data_dir"])
    select_photos(state, path, data_dir)
    name = args.name or bentos.default_name(state.classes)
    shown = shows_photos(state, data_dir) if args.examples is None else args.examples
    labels = {
        "checkpoint": bentos.hash_files(path),
        "code": bentos.hash_code(),
        "examples": str(shown),
    }
    packed = bentos.find_packed(name, labels)
    if packed:
        print(f"{path} is packed already.")
    else:
        print(f"Packing {path} as {name}")
        with tempfile.TemporaryDirectory() as folder:
            file, metadata = export_model(state, data_dir, Path(folder), with_examples=shown)
            metadata["checkpoint_sha256"] = labels["checkpoint"]
            metadata["trained"] = f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d}"
            onnx_export.describe(file, metadata)
            print("building the Bento …")
            packed = bentos.build_bento(name, file, metadata, labels)
    show(packed, state, data_dir)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Pack a checkpoint into a BentoML service.",
        epilog="Next: bentoml serve NAME:latest",
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", help="default: newest in saved_models")
    parser.add_argument("--data-dir", type=Path, help="photos (default: those it was trained on)")
    parser.add_argument("--name", help="of the service (default: after its classes)")
    parser.add_argument(
        "--examples",
        action=argparse.BooleanOptionalAction,
        help="let anyone see and try three validation photos on the page (default: only the"
        " tutorial's and drawn ones)",
    )
    args = parser.parse_args(argv)
    if args.name and not bentos.NAME.fullmatch(args.name):
        parser.error(f"--name must be {bentos.NAME_RULE}")
    return args


def select_photos(state: Checkpoint, path: Path, data_dir: Path) -> None:
    """Drop photos that are gone; say so if what the checkpoint learned from has changed since.

    Raises StackError if none are left.
    """
    if changed := folders.changes(folders.scan(data_dir), state.classes, state.sizes):
        again = shlex.join(["--data-dir", str(data_dir), "--output", str(path)])
        said = f"note: {data_dir} has changed since {path} was trained ({changed})"
        print(
            f"{printable(said)}. To train it anew:\n  python train.py --update {again}",
            file=sys.stderr,
        )
    for split, names in state.photos.items():
        state.photos[split] = [name for name in names if (data_dir / name).is_file()]
        if not state.photos[split]:
            raise StackError(
                f"{data_dir} has none of the photos that {path} was trained with: name their folder"
                " with --data-dir, or train again"
            )


def shows_photos(state: Checkpoint, data_dir: Path) -> bool:
    """Return whether the page shows some of the photos, unless told: no photos of the user's."""
    drawn = (data_dir / sample.NOTE).exists()
    return drawn or ONE_OF_THE_TUTORIALS in state.photos["val"]


def export_model(
    state: Checkpoint, data_dir: Path, folder: Path, *, with_examples: bool
) -> tuple[Path, dict[str, Any]]:
    """Export the best weights to `folder`; return the ONNX file to serve and its metadata.

    The file is fp32 if int8 changes too many answers. Raises StackError if ONNX and PyTorch differ.
    If `with_examples`, the photos that the page offers are written beside it.
    """
    classifier = model.Classifier(len(state.classes)).eval()
    classifier.load_state_dict(state.best)

    def photos_of(names: list[str]) -> Photos:
        return Photos(data_dir, names, state.classes, whole=False)

    train, val = state.photos["train"], state.photos["val"]
    count = min(len(train), CALIBRATION_PHOTOS)
    calibration = [train[i * len(train) // count] for i in range(count)]
    # So few photos tell little about int8: those for its calibration are compared, too.
    photos = photos_of(val + calibration if len(val) < FEW_PHOTOS else val)

    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    print("exporting to ONNX …")
    onnx_export.to_onnx(classifier, fp32)
    print("quantizing to int8 …")
    onnx_export.quantize(fp32, int8, photos_of(calibration))
    print(f"comparing the answers to {len(photos)} photos …")
    models = (classifier, OnnxModel(fp32), OnnxModel(int8))
    (expected, _), exported, quantized = onnx_export.outputs_of(models, photos)
    difference = float(np.abs(exported[0] - expected).max())
    if not difference <= MAX_LOGIT_DIFFERENCE:  # NaN is neither
        raise StackError(
            f"the exported model differs from PyTorch's by {difference:.2g} in a logit, more than"
            f" {MAX_LOGIT_DIFFERENCE:g}: not packed. Install the versions in requirements.txt"
        )
    reason = onnx_export.reason_against_int8(quantized[0], exported[0], photos.labels.tolist())
    if reason:
        print(f"note: int8 {reason}, so fp32 is packed")
    file, outputs = (fp32, exported) if reason else (int8, quantized)
    targets = photos.labels[: len(val)].numpy()
    expected, served, features = (x[: len(val)] for x in (expected, *outputs))

    bank_photos = photos_of(similarity.choose(train, state.classes))
    print(f"keeping the features of {len(bank_photos)} training photos …")
    ((_, bank),) = onnx_export.outputs_of([OnnxModel(file)], bank_photos)
    similarity.add_bank(file, bank)
    chosen = examples.choose(served, targets.tolist()) if with_examples else []
    return file, {
        "classes": state.classes,
        "notice": state.disclaimer,
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
        "unlike": similarity.threshold(bank, features),
        "examples": examples.write((photos.paths[i] for i in chosen), folder),
    }


def show(packed: bentoml.Bento, state: Checkpoint, data_dir: Path) -> None:
    """Predict one photo with the packed service; print where it is and how to serve it."""
    stored = bentos.model_of(packed)
    metadata: dict[str, Any] = dict(stored.info.metadata)
    photo = data_dir / state.photos["val"][-1]
    saved_path = str(Path(packed.path).absolute())  # BENTOML_HOME may be relative
    print("trying it …")
    with local_server.serve(saved_path) as url:
        answer = local_server.predict(url, photo)
    name = printable(os.fsencode(photo).decode(errors="backslashreplace"))  # if not UTF-8
    accuracy, count = metadata["accuracy_packed"], metadata["validation_photos"]
    unlike = metadata["unlike"]
    told = (
        f"with a similarity below {unlike['threshold']:.3f}, a photo is called unlike the training"
        f" photos: {round(unlike['validation_photos_unlike'] * count)} of {count} validation photos"
        if "threshold" in unlike
        else f"no photo is called unlike the training photos, as {unlike['reason']}"
    )
    print(
        f"\nvalidation accuracy: {metadata['accuracy_checkpoint']:.4f} before packing,"
        f" {accuracy:.4f} packed ({metadata['precision']}; {format_interval(accuracy, count)});"
        f" the same answer to {metadata['same_answers']} of {count} photos"
        f"\n{told}\n{name} → {answer}"
        f"\nONNX file: {Path(stored.path_of('model.onnx')).absolute()}"
        f"\ntag: {packed.tag}\nsaved path: {saved_path}"
    )
    cli.print_next(
        f"bentoml serve {packed.tag.name}:latest"
        f'\nthen: curl -X POST http://localhost:{Settings.port}/predict -H "Content-Type: image/*"'
        f" --data-binary {shlex.quote(f'@{name}')}"
    )


if __name__ == "__main__":
    main()
