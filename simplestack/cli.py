"""The Simple Stack: `serving` is what is deployed, `training` and `packing` lead there."""

import contextlib
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Iterator

from simplestack.serving.errors import StackError, printable

ACTIVATE = "activate the environment first (. .venv/bin/activate)"
CLEAR_LINE = "\r\33[K"


def require(package: str) -> None:
    """Exit with an error if a package isn't installed."""
    if not importlib.util.find_spec(package):
        sys.exit(f"error: {package} isn't installed in this Python: {ACTIVATE}, or make run")


def loading(what: str) -> None:
    """Until `loaded`, say on a terminal what takes seconds, and end on Ctrl-C without a traceback.

    There is nothing to clean up yet.
    """
    if sys.stderr.isatty():
        print(f"loading {what} …", end="", file=sys.stderr, flush=True)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def loaded(*numbers: signal.Signals) -> None:
    """Let these signals, and Ctrl-C if it isn't ignored, raise KeyboardInterrupt."""
    if sys.stderr.isatty():
        print(CLEAR_LINE, end="", file=sys.stderr, flush=True)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in numbers:
        signal.signal(number, signal.default_int_handler)


def _exit(*_: object) -> None:
    os.write(2, b"\nStopped.\n")
    os._exit(130)


@contextlib.contextmanager
def one_line(*errors: type[Exception], stopped: str = "Stopped.") -> Iterator[None]:
    """Exit with one line on a StackError, one of these errors, or Ctrl-C: no traceback."""
    expected: tuple[type[Exception], ...] = (StackError, *errors)
    try:
        yield
    except expected as error:
        sys.exit(f"error: {printable(str(error))}")
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(130)


def print_next(commands: str) -> None:
    """Print the next command, unless a script runs all of them in a row."""
    if "NO_NEXT" not in os.environ:
        hint = "" if shutil.which("bentoml") else f"{ACTIVATE}, then\n"
        print(f"\nNext: {hint}{commands}")
