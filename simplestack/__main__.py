"""Commands for the shell scripts.

python -m simplestack add-corrections ZIP FOLDER    put corrections into a data folder
python -m simplestack check-port            fail if another program listens on $PORT
python -m simplestack draw-sample FOLDER    draw pictures of ants and bees
python -m simplestack fetch-weights         download the ImageNet weights
python -m simplestack report CHECKPOINT     write the report of a training again
python -m simplestack saved-path [NAME]     print where the latest Bento is
python -m simplestack tag CHECKPOINT        print the tag of its latest Bento
"""

import os
import sys
from pathlib import Path

from simplestack import cli

if __name__ == "__main__":
    cli.start("bentoml")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in train.py: a report fits probes

from simplestack.packing import bentos, local_server
from simplestack.serving import settings
from simplestack.training import corrections, sample


def main(arguments: list[str]) -> None:
    """Run a command; its arguments follow its name. Raises StackError if it fails."""
    match arguments:
        case ["add-corrections", archive, folder]:
            corrections.add(Path(archive), Path(folder))
        case ["check-port"]:
            local_server.check_port(settings.read().port)
        case ["draw-sample", folder]:
            sample.write(Path(folder), sample.COUNTS)
        case ["fetch-weights"]:
            from simplestack.training import model  # noqa: PLC0415  (imports PyTorch: seconds)

            try:
                model.pretrained(2)
            except model.UnreachableError as error:
                print(f"error: {error}", file=sys.stderr)
                sys.exit(os.EX_UNAVAILABLE)  # for run.sh
        case ["report", path]:
            from simplestack.report import report  # noqa: PLC0415  (as above)

            report.write(Path(path))
            print(f"report: {report.page(Path(path))}")
        case ["saved-path", *name]:
            print(bentos.latest(*name[:1]).path)
        case ["tag", checkpoint]:
            print(bentos.latest(checkpoint=bentos.hash_files(Path(checkpoint))).tag)
        case _:
            print(__doc__, file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
