"""Pack a checkpoint into a BentoML service.

    python saveToBento.py                            # the newest checkpoint in saved_models/
    python saveToBento.py saved_models/NAME.ckpt     # a certain one

Exports the network to ONNX, quantises it to int8, and checks on the validation photos that neither
step changes its answers. The ONNX file goes beside the checkpoint and into a Bento; its metadata
describes the model.
"""

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path

from simplestack import cli

if __name__ == "__main__":
    cli.start("bentoml")

# BentoML reads this when it is imported; without it, each build is reported to its makers.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml

from simplestack.files import before, keep, write_atomically
from simplestack.packing import bentos, comparison, local_server, onnx_file
from simplestack.serving.errors import StackError, printable
from simplestack.serving.inference import OnnxModel
from simplestack.serving.settings import Settings
from simplestack.training import checkpoint, folders, sample
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.metrics import format_interval
from simplestack.training.options import command

TUTORIALS_PHOTO = "val/ants/10308379_1b6c72e180.jpg"  # the tutorial's photos are public anyway


def main(argv: list[str] | None = None) -> None:
    """Pack a checkpoint unless it is packed, try the Bento, and print the commands to serve it."""
    args = parse_arguments(argv)
    path = args.checkpoint or cli.newest(".ckpt")
    state = checkpoint.load(path)
    data_dir = args.data_dir or Path(state.arguments["data_dir"])
    select_photos(state, path, data_dir)
    with_examples = has_public_photos(state, data_dir) if args.examples is None else args.examples
    name, onnx = args.name or bentos.default_name(state.classes), path.with_suffix(".onnx")
    labels = {
        "checkpoint": bentos.hash_files(path),
        "code": bentos.hash_code(),
        "examples": str(with_examples),
    }
    bento = bentos.find_packed(name, onnx, labels)
    if bento:
        print(f"{path} is packed already.")
    else:
        print(f"Packing {path} as {name}")
        if comparison.belongs(onnx, before(path)):
            keep(onnx)
        # The old ONNX file belongs to the old Bento, so it stays until the new Bento is built.
        with tempfile.TemporaryDirectory() as folder, write_atomically(onnx) as file:
            exported = onnx_file.export(
                state, path, data_dir, Path(folder), with_examples=with_examples
            )
            file.write(exported.read_bytes())
            print("building the Bento …")
            bento = bentos.build_bento(name, exported, labels)
    compared = comparison.compare(path, onnx, state, data_dir)
    # A validation photo: the network hasn't learned from it.
    name = state.photos["val"][-1]
    show(bento, onnx, data_dir / name, folders.class_of(name, state.classes), compared)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return checkpoint, data_dir, name and examples; missing ones are None."""
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
    """Drop missing photos from the checkpoint; print a note if any have changed since training.

    Raises StackError if a split has none left.
    """
    if changed := folders.changes(folders.scan(data_dir), state.classes, state.sizes):
        again = command({**state.arguments, "data_dir": str(data_dir)}, path)
        note = printable(f"note: {data_dir} has changed since {path} was trained ({changed})")
        print(f"{note}. To train on them:\n  {again}", file=sys.stderr)
    for split, names in state.photos.items():
        state.photos[split] = [name for name in names if (data_dir / name).is_file()]
        if not state.photos[split]:
            raise StackError(
                f"{data_dir} has none of the photos that {path} was trained with: name their folder"
                " with --data-dir, or train again"
            )


def has_public_photos(state: Checkpoint, data_dir: Path) -> bool:
    """Return whether anyone may see the photos: they are drawn, or the tutorial's."""
    drawn = (data_dir / sample.NOTE).exists()
    return drawn or TUTORIALS_PHOTO in state.photos["val"]


def show(bento: bentoml.Bento, onnx: Path, photo: Path, label: str, compared: str = "") -> None:
    """Classify a photo of some label; print the Bento's metrics, its paths and the next command.

    `compared` is text on the model before, printed last.
    """
    saved_path = str(Path(bento.path).absolute())  # BENTOML_HOME may be relative
    print("trying it …")
    with local_server.serve(saved_path, API_TOKEN="") as url:
        answer = local_server.predict(url, photo)
    name = printable(os.fsencode(photo).decode(errors="backslashreplace"))  # if not UTF-8
    metadata = OnnxModel(onnx).metadata
    accuracy, count = metadata["accuracy_packed"], metadata["validation_photos"]
    unlike = metadata["unlike"]
    similarities = (
        f"with a similarity below {unlike['threshold']:.3f}, a photo is called unlike the training"
        f" photos: {round(unlike['validation_photos_unlike'] * count)} of {count} validation photos"
        if "reason" not in unlike
        else f"no photo is called unlike the training photos, as {unlike['reason']}"
    )
    temperature = metadata["temperature"]
    confidence = (
        f"a temperature of {temperature:.2f} lowers the log loss of validation photos\n"
        if temperature != 1
        else ""
    )
    print(
        f"\nvalidation accuracy: {metadata['accuracy_checkpoint']:.4f} before packing,"
        f" {accuracy:.4f} packed ({metadata['precision']}; {format_interval(accuracy, count)});"
        f" the same answer to {metadata['same_answers']} of {count} photos"
        f"\n{confidence}{similarities}\n{name} (correct: {printable(label)}) → {answer}"
        f"\nONNX file: {onnx}\ntag: {bento.tag}\nsaved path: {saved_path}{compared}"
    )
    cli.print_next(
        f"bentoml serve {bento.tag.name}:latest"
        f'\nthen: curl -X POST http://localhost:{Settings.port}/predict -H "Content-Type: image/*"'
        f" --data-binary {shlex.quote(f'@{name}')}"
    )


if __name__ == "__main__":
    main()
