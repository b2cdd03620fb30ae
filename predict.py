"""Answer photos with the packed model, without a server.

python predict.py PHOTOS > answers.csv           # each photo in a folder, and below it
python predict.py --json a.jpg b.webp            # an object per line, with all probabilities
"""

import argparse
import csv
import signal
import sys
from pathlib import Path

from simplestack import cli

if __name__ == "__main__":
    cli.start("bentoml")

from tqdm import tqdm

from simplestack import files
from simplestack.serving.errors import StackError
from simplestack.serving.formats import SUFFIXES
from simplestack.serving.responses import to_json
from simplestack.training import folders

COLUMNS = ("path", "label", "confidence", "similarity", "unlike", "error")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=f"Answer photos with the packed model, as CSV: {', '.join(COLUMNS)}.",
        epilog="Exits with 1 if not a single photo could be answered.",
    )
    parser.add_argument("paths", type=Path, nargs="+", help="photos, or folders of them")
    parser.add_argument("--name", default="", help="of the service (default: what was packed last)")
    parser.add_argument("--json", action="store_true", help="a JSON object per line instead")
    return parser.parse_args()


def main(paths: list[Path], name: str, as_json: bool) -> bool:
    """Print a row for each photo; return whether at least one has an answer."""
    photos = find(paths)
    from simplestack.packing import local_model  # noqa: PLC0415  (takes a second)

    rows = files.map_in_threads(local_model.load(name), photos)
    writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
    if not as_json:
        writer.writeheader()
    answered = False
    disable = sys.stdout.isatty() or None  # None: unless stderr is a terminal
    for row in tqdm(rows, total=len(photos), unit=" photos", disable=disable):
        sys.stdout.write(to_json(row)) if as_json else writer.writerow(row)
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


if __name__ == "__main__":
    given = parse_arguments()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends quietly if nobody reads on
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(not main(given.paths, given.name, given.json))
