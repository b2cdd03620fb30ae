"""Commands for the shell scripts.

python -m simplestack check-port            fail if another program listens on $PORT
python -m simplestack draw-sample FOLDER    draw pictures of ants and bees
python -m simplestack fetch-weights         download the ImageNet weights
python -m simplestack saved-path [NAME]     print where the latest Bento is
python -m simplestack serve CHECKPOINT FOLDER
                                            serve what was packed from it, predict a photo
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from simplestack import cli

if __name__ == "__main__":
    cli.start("bentoml")

from simplestack.packing import bentos, local_server
from simplestack.serving import images, settings
from simplestack.serving.errors import StackError
from simplestack.training import folders, sample


def main(arguments: list[str]) -> None:
    """Run a command. Raises StackError if it fails."""
    match arguments:
        case ["check-port"]:
            local_server.check_port(settings.read().port)
        case ["draw-sample", folder]:
            sample.write(Path(folder), sample.COUNTS)
        case ["fetch-weights"]:
            fetch_weights()
        case ["saved-path", *name]:
            print(bentos.latest(*name[:1]).path)
        case ["serve", checkpoint, data_dir]:
            serve(Path(checkpoint), Path(data_dir))
        case _:
            print(__doc__, file=sys.stderr)
            sys.exit(2)


def serve(checkpoint: Path, data_dir: Path) -> None:
    """Serve what was packed from a checkpoint, predict a photo, and show requests until Ctrl-C."""
    bento = bentos.latest(checkpoint=bentos.hash_files(checkpoint))
    about: dict[str, Any] = dict(bentos.model_of(bento).info.metadata)
    photos = about["validation_photos"]
    right = round(about["accuracy_packed"] * photos)
    local_server.serve_until_ctrl_c(
        str(bento.tag),
        last_readable(data_dir, about["classes"]),
        f"accuracy: {right / photos:.4f}, {right} of {photos} validation photos",
        f"report: {checkpoint.with_suffix('') / 'report.html'}",
        "your own photos: DATA_DIR=FOLDER make run, with a folder of photos for each class in it",
        "the single steps: . .venv/bin/activate, then as in README.md",
    )


def last_readable(data_dir: Path, classes: list[str]) -> Path:
    """Return a photo, of those for validation if they are set apart. Raises StackError if none."""
    for name in reversed(folders.find_labelled(data_dir, classes)):
        with suppress(StackError, OSError):
            images.read((data_dir / name).read_bytes())
            return data_dir / name
    raise StackError(f"none of the photos in {data_dir} can be read")


def fetch_weights() -> None:
    """Download the ImageNet weights; exit with EX_UNAVAILABLE, for run.sh, if it can't."""
    from simplestack.training import model  # noqa: PLC0415  # takes seconds

    try:
        model.pretrained(2)
    except model.UnreachableError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(os.EX_UNAVAILABLE)


if __name__ == "__main__":
    main(sys.argv[1:])
