"""Files: read in threads with flat memory, written whole or not at all."""

import os
import sys
from pathlib import Path

import pytest

from simplestack.files import MAX_IN_FLIGHT, map_in_threads, write_atomically


def test_however_many_photos_there_are_few_are_in_flight():
    started = []
    rows = map_in_threads(lambda i: started.append(i) or -i, range(500))
    assert next(rows) == 0
    assert len(started) <= MAX_IN_FLIGHT + 1
    assert list(rows) == [-i for i in range(1, 500)]


def test_an_error_in_a_thread_is_raised_where_its_result_is_due():
    rows = map_in_threads(lambda number: 6 // number, [3, 2, 0])
    assert [next(rows), next(rows)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(rows)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which file it is")
def test_a_file_is_there_only_once_it_is_complete_and_on_the_disk(tmp_path, monkeypatch):
    path, synced = tmp_path / "new" / "a.txt", []
    links = Path("/proc/self/fd")
    monkeypatch.setattr(os, "fsync", lambda n: synced.append(str((links / str(n)).readlink())))
    with write_atomically(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert synced == [f"{path}.part", str(path.parent)]
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_completed_stays_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), write_atomically(path) as file:  # noqa: PT012
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
