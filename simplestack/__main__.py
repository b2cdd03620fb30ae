"""Commands for the shell scripts.

python -m simplestack check-port            fail if another program listens on $PORT
python -m simplestack draw-sample FOLDER    draw pictures of ants and bees
python -m simplestack fetch-weights         download the ImageNet weights
python -m simplestack saved-path            print where the latest Bento is
python -m simplestack serve PHOTO           serve the latest Bento and predict a photo
"""

import os
import sys
from pathlib import Path

from simplestack.packing import build, local_server
from simplestack.serving import settings
from simplestack.serving.errors import StackError
from simplestack.training import sample


def main(arguments: list[str]) -> None:
    """Run a command. Raises StackError if it fails."""
    match arguments:
        case ["check-port"]:
            local_server.check_port(settings.read().port)
        case ["draw-sample", folder]:
            sample.write(Path(folder), sample.COUNTS)
        case ["fetch-weights"]:
            fetch_weights()
        case ["saved-path"]:
            print(build.latest().path)
        case ["serve", photo]:
            local_server.serve_until_ctrl_c(f"{build.NAME}:latest", Path(photo))
        case _:
            print(__doc__, file=sys.stderr)
            sys.exit(2)


def fetch_weights() -> None:
    """Download the ImageNet weights; exit with EX_UNAVAILABLE, for run.sh, if it can't."""
    from simplestack.training import model  # noqa: PLC0415  # torch takes seconds

    try:
        model.pretrained(2)
    except model.UnreachableError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(os.EX_UNAVAILABLE)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except StackError as error:
        sys.exit(f"error: {error}")
