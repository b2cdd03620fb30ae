"""Classify photos with the packed model, without a server.

python predict.py FOLDER > answers.csv           # each photo in a folder, and below it
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
    args = parser.parse_args(argv)
    photos = find_photos(args.paths)
    model = OnnxModel(args.model or cli.newest(".onnx"))
    rows = files.map_in_threads(partial(classify, model), photos)
    writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
    if not args.json:
        writer.writeheader()
    classified = False
    disable = sys.stdout.isatty() or None  # None: unless stderr is a terminal
    for row in tqdm(rows, total=len(photos), unit=" photos", disable=disable):
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


def classify(model: OnnxModel, path: Path) -> dict[str, Any]:
    """Return a photo's path with the answer that /predict gives, or with "error"."""
    try:
        outputs = model(images.read(path.read_bytes())[None])
    except StackError as error:
        return {"path": str(path), "error": str(error)}
    except OSError as error:
        return {"path": str(path), "error": f"The file can't be read: {error.strerror}."}
    return {"path": str(path), **answer(model.metadata, outputs)}


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when the reader closes the pipe
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(not main())
