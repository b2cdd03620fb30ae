"""Cores and memory are those of the container, not of its host."""

import os

import psutil
import pytest

from simplestack.serving import cgroup

QUOTA, PERIOD = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"
LIMIT = "memory/memory.limit_in_bytes"


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        *(({}, 64), ({"cpu.max": "max 100000"}, 64), ({"cpu.max": "100000 100000"}, 1)),
        *(({"cpu.max": "250000 100000"}, 2), ({"cpu.max": "50000 100000"}, 1)),
        *(({"cpu.max": "9900000 100000"}, 64), ({QUOTA: -1, PERIOD: 100000}, 64)),
        *(({QUOTA: 200000, PERIOD: 100000}, 2), ({QUOTA: 200000}, 64)),
    ],
)
def test_threads_fit_the_cpu_quota(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cgroup.cores(write(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        *(({"memory.max": 2**29}, 2**29), ({LIMIT: 2**29}, 2**29), ({}, None)),
        *(({"memory.max": "max"}, None), ({LIMIT: 2**63 - 4096}, None)),
    ],
)
def test_the_memory_of_a_container_is_its_own(tmp_path, files, limit):
    limit = limit or psutil.virtual_memory().total
    assert cgroup.memory_limit(write(tmp_path, files)) == limit
