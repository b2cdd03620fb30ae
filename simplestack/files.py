"""Files: read in threads, written whole or not at all, kept before they are replaced."""

import contextlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

from simplestack.serving.cgroup import cores

MAX_IN_FLIGHT = 64  # items, read ahead
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield the result of a function for each item, in order, with few results in memory."""
    in_flight: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(cores() + 4)
    try:
        for item in items:
            in_flight.append(pool.submit(function, item))
            if len(in_flight) > MAX_IN_FLIGHT:
                yield in_flight.popleft().result()
        yield from (future.result() for future in in_flight)
    finally:  # also after an error, or if the caller stops early
        pool.shutdown(cancel_futures=True)


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
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # or a power cut may undo the renaming
        os.close(folder)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write to a full disk names no file
        raise
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def before(path: Path) -> Path:
    """Return where the file before this one is kept, such as NAME.before.ckpt for NAME.ckpt."""
    return path.with_suffix(f".before{path.suffix}")


def keep(path: Path) -> None:
    """Copy a file, with its date, to where the one before is kept."""
    part = Path(f"{path}.{os.getpid()}.part")  # several processes may train, and each does this
    try:
        shutil.copy2(path, part)
        part.replace(before(path))
    finally:  # also if the disk is full
        part.unlink(missing_ok=True)
