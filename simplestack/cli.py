"""Shared by the scripts: one-line errors, the newest file, the next command. Not deployed."""

import importlib.util
import os
import shutil
import signal
import sys
from pathlib import Path
from types import TracebackType

from simplestack.serving.errors import StackError, printable

WRITERS = {".ckpt": "train.py", ".onnx": "saveToBento.py"}
ACTIVATE = "activate the environment first (. .venv/bin/activate)"


def start(package: str) -> None:
    """Prepare a script that needs a package; exit with an error if that isn't installed.

    From now on a StackError or OSError ends it with one line, and Ctrl-C, SIGTERM or a closed
    terminal with "Stopped.".
    """
    sys.excepthook = one_line
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    if not importlib.util.find_spec(package):
        sys.exit(f"error: {package} isn't installed in this Python: {ACTIVATE}, or make run")


def one_line(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Print an exception that ends the script; with a traceback only if it is a bug."""
    if isinstance(error.__cause__, KeyboardInterrupt):  # NumPy makes it an ImportError
        error = error.__cause__
    if isinstance(error, KeyboardInterrupt):
        print(f"\nStopped. {error}".rstrip(), file=sys.stderr)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)  # so that a shell script ends, too
    elif issubclass(kind, StackError | OSError):
        print(f"error: {printable(str(error))}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def newest(suffix: str, folder: Path = Path("saved_models")) -> Path:
    """Return the .ckpt or .onnx file that was written last, but no NAME.before.*.

    Raises StackError if there is none.
    """
    there = (path for path in folder.glob(f"*{suffix}") if not path.stem.endswith(".before"))
    paths = sorted(there, key=lambda path: path.stat().st_mtime)
    if not paths:
        raise StackError(f"{folder}/ has no {suffix} file: run `python {WRITERS[suffix]}` first")
    return paths[-1]


def print_next(commands: str) -> None:
    """Print the next command, unless a script runs all of them in a row."""
    if "NO_NEXT" not in os.environ:
        hint = "" if shutil.which("bentoml") else f"{ACTIVATE}, then\n"
        print(f"\nNext: {hint}{commands}")
