"""Classify photos with the packed model, without a server.

python predict.py FOLDER > answers.csv           # each photo in a folder, and below it
python predict.py --json a.jpg b.webp            # an object per line, with all probabilities
python predict.py FOLDER --next 12               # of photos without labels: label these first
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

import numpy as np
from tqdm import tqdm

from simplestack import active_learning, files
from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.serving.formats import SUFFIXES
from simplestack.serving.inference import ANSWER, OnnxModel, answer
from simplestack.serving.responses import to_json
from simplestack.training import folders

COLUMNS = ("path", "label", "confidence", "similarity", "unlike", "error")
CONTROLS = {c: f"\\u{c:04x}" for c in (*range(32), *range(127, 160))}  # terminals would obey them


def main(argv: list[str] | None = None) -> bool:
    """Print a row for each photo; return whether any is classified."""
    parser = argparse.ArgumentParser(
        description=f"Classify photos with the packed model, as CSV: {', '.join(COLUMNS)}.",
        epilog="Exits with 1 if no photo could be classified.",
    )
    parser.add_argument("paths", type=Path, nargs="+", help="photos, or folders of them")
    parser.add_argument("--model", type=Path, help="ONNX file (default: newest in saved_models)")
    parser.add_argument("--json", action="store_true", help="a JSON object per line instead")
    parser.add_argument("--next", type=int, metavar="N", help="only the N photos to label first")
    args = parser.parse_args(argv)
    if args.next is not None and args.next < 1:
        parser.error("--next must be at least 1")
    photos = find_photos(args.paths)
    model = OnnxModel(args.model or cli.newest(".onnx"))
    if args.next and len(model.session.get_outputs()) == len(ANSWER):
        raise StackError(f"{model.path} has no features: pack again with python saveToBento.py")
    answers = files.map_in_threads(partial(classify, model), photos)
    disable = sys.stdout.isatty() or None  # None: unless stderr is a terminal
    rows = tqdm(answers, total=len(photos), unit=" photos", disable=disable)
    writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
    if not args.json:
        writer.writeheader()
    classified = False
    for row in choose(list(rows), args.next) if args.next else rows:
        row.pop("features", None)
        path = row["path"].translate(CONTROLS)
        # A spreadsheet would take these names for formulas.
        cells = {**row, "path": f"./{path}" if path[0] in "=+-@" else path}
        print(to_json(row).strip().translate(CONTROLS)) if args.json else writer.writerow(cells)
        classified |= "label" in row
    sys.stdout.flush()
    return classified


def find_photos(paths: list[Path]) -> list[Path]:
    """Return the photos among paths and in folders, sorted. Raises StackError if one is missing."""
    for path in paths:
        if not path.exists():
            raise StackError(f"there is no {path}: name photos, or folders with photos in them")
    inside = (path for top in paths for path in folders.files_in(top) if folders.is_photo(path))
    if not (photos := sorted({*inside, *(path for path in paths if not path.is_dir())})):
        raise StackError(f"{paths[0]} has no photos in it ({', '.join(sorted(SUFFIXES))})")
    return photos


def choose(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the rows of up to `count` photos to label first."""
    answers = [row for row in rows if "label" in row]
    if failed := len(rows) - len(answers):
        print(f"photos that can't be used: {failed}; without --next: why", file=sys.stderr)
    if not answers:
        return []
    features = np.concatenate([row["features"] for row in answers])
    probabilities = np.array([list(row["probabilities"].values()) for row in answers])
    return [answers[i] for i in active_learning.choose(probabilities, features, count)]


def classify(model: OnnxModel, path: Path) -> dict[str, Any]:
    """Return a photo's path, features and the answer that /predict gives; or path and "error"."""
    try:
        outputs = model(images.read(path.read_bytes())[None], None)
    except StackError as error:
        return {"path": str(path), "error": str(error)}
    except OSError as error:
        return {"path": str(path), "error": f"The file can't be read: {error.strerror}."}
    return {"path": str(path), **answer(model.metadata, outputs[:3]), "features": outputs[-1]}


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when the reader closes the pipe
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(not main())
