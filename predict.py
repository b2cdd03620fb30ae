"""Classify photos with the packed model, without a server.

python predict.py PHOTOS > answers.csv           # each photo in a folder, and below it
python predict.py --json a.jpg b.webp            # an object per line, with all probabilities
"""

import argparse
import csv
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from simplestack import cli

if __name__ == "__main__":
    cli.start("onnxruntime")

from tqdm import tqdm

from simplestack import files
from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.serving.formats import SUFFIXES
from simplestack.serving.inference import OnnxModel, answer
from simplestack.serving.responses import to_json
from simplestack.training import folders

COLUMNS = ("path", "label", "confidence", "similarity", "unlike", "error")


def main(argv: list[str] | None = None) -> bool:
    """Print a row for each photo; return whether at least one has an answer."""
    parser = argparse.ArgumentParser(
        description=f"Classify photos with the packed model, as CSV: {', '.join(COLUMNS)}.",
        epilog="Exits with 1 if not a single photo could be answered.",
    )
    parser.add_argument("paths", type=Path, nargs="+", help="photos, or folders of them")
    parser.add_argument("--model", type=Path, help="ONNX file (default: newest in saved_models)")
    parser.add_argument("--json", action="store_true", help="a JSON object per line instead")
    args = parser.parse_args(argv)
    photos = find(args.paths)
    model = OnnxModel(args.model or cli.newest(".onnx"))
    rows = files.map_in_threads(partial(classify, model), photos)
    writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
    if not args.json:
        writer.writeheader()
    answered = False
    disable = sys.stdout.isatty() or None  # None: unless stderr is a terminal
    for row in tqdm(rows, total=len(photos), unit=" photos", disable=disable):
        sys.stdout.write(to_json(row)) if args.json else writer.writerow(row)
        answered |= "label" in row
    sys.stdout.flush()
    return answered


def find(paths: list[Path]) -> list[Path]:
    """Return the photos, and those in the folders, sorted. Raises StackError if one is missing."""
    for path in paths:
        if not path.exists():
            raise StackError(f"there is no {path}: name photos, or folders with photos in them")
    inside = folders.photos_in(path for path in paths if path.is_dir())
    if not (photos := sorted({*inside, *(path for path in paths if not path.is_dir())})):
        raise StackError(f"{paths[0]} has no photos in it ({', '.join(sorted(SUFFIXES))})")
    return photos


def classify(model: OnnxModel, path: Path) -> dict[str, Any]:
    """Return the path of a photo, and its answer as from /predict or else "error"."""
    try:
        outputs = model(images.read(path.read_bytes())[None])
    except StackError as error:
        return {"path": str(path), "error": str(error)}
    except OSError as error:
        return {"path": str(path), "error": f"The file can't be read: {error.strerror}."}
    return {"path": str(path), **answer(model.metadata, outputs)}


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends quietly if nobody reads on
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(not main())
