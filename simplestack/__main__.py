"""The small commands that run.sh and get_data.sh are made of.

python -m simplestack check-port                 is the port free?
python -m simplestack serve TAG PHOTO            serve, predict the photo, stay up
python -m simplestack fetch-weights              so that training finds them
python -m simplestack draw-sample FOLDER         draw ants and bees
"""

import sys
from pathlib import Path

from simplestack.serving.errors import StackError

UNREACHABLE = 69  # exit code, as sysexits.h has it for what is unavailable


def main(arguments: list[str]) -> None:
    """Run a command; each imports no more than it needs."""
    match arguments:
        case ["check-port"]:
            from simplestack.packing import local_server  # noqa: PLC0415

            local_server.check_port(local_server.port())
        case ["serve", tag, photo]:
            from simplestack.packing import local_server  # noqa: PLC0415

            local_server.serve_until_ctrl_c(tag, Path(photo))
        case ["fetch-weights"]:
            from simplestack.training import model  # noqa: PLC0415

            try:
                model.pretrained(2)
            except model.UnreachableError as error:
                print(f"error: {error}", file=sys.stderr)
                sys.exit(UNREACHABLE)
        case ["draw-sample", folder]:
            from simplestack.training import sample  # noqa: PLC0415

            sample.write(Path(folder), sample.COUNTS)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except StackError as error:
        sys.exit(f"error: {error}")
