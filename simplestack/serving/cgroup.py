"""CPU and memory limits of the container, or else of the machine."""

import os
import sys
from pathlib import Path


def cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many cores this process may use: at least 1, at most the container's CPU quota.

    Reads the quota of control groups of version 2 or version 1.
    """
    # macOS has no affinity of processes.
    available = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        if all((cgroup / file).exists() for file in files):
            quota, period = " ".join((cgroup / file).read_text() for file in files).split()
            if quota not in {"max", "-1"}:
                return max(1, min(available, int(quota) // int(period)))
    return available


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory of this container, or else of this machine, in bytes.

    Reads the limit of control groups of version 2 or version 1.
    """
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        if file.exists() and (text := file.read_text().strip()) != "max":
            limit = min(limit, int(text))
    return limit
