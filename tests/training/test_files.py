"""Files are read in threads, and memory stays flat."""

import threading
from pathlib import Path

from simplestack.serving.container import cores
from simplestack.training.files import map_in_threads


def test_however_many_photos_there_are_few_are_in_flight():
    started, lock, paths = [], threading.Lock(), [Path(str(i)) for i in range(500)]

    def answer(path: Path) -> dict:
        with lock:
            started.append(path)
        return {"path": str(path)}

    rows = map_in_threads(answer, paths)
    assert next(rows) == {"path": "0"}
    assert len(started) <= 4 * cores() + 1
    assert [row["path"] for row in rows] == [str(path) for path in paths[1:]]
