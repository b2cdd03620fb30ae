"""Files: read in threads, written whole or not at all."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

from simplestack.serving.container import cores

AT_ONCE = 256  # results that may wait for the one before them
Result = TypeVar("Result")


def map_in_threads(function: Callable[[str], Result], names: Sequence[str]) -> Iterator[Result]:
    """Yield what a function returns for each name, in order. Memory stays flat."""
    with ThreadPoolExecutor(cores() + 4) as pool:
        for start in range(0, len(names), AT_ONCE):
            yield from pool.map(function, names[start : start + AT_ONCE])


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` once it is complete and on the disk.

    If anything goes wrong, `path` stays as it was and nothing is left beside it.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)  # or a power cut may undo the renaming
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
