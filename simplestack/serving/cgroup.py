"""CPU and memory limits of the container, or else of the machine."""

import os
import sys
from pathlib import Path


def cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the cores that this process may keep busy: a container's quota, not its host's cores.

    Looks for the quota where control groups of version 2 and version 1 have it.
    """
    # macOS can't tell which cores a process may use, only how many there are.
    available = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        if all((cgroup / file).exists() for file in files):
            quota, period = " ".join((cgroup / file).read_text() for file in files).split()
            if quota not in {"max", "-1"}:
                return max(1, min(available, int(quota) // int(period)))
    return available


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes this container, or else this machine, has.

    Looks for the limit where control groups of version 2 and version 1 have it.
    """
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        if file.exists() and (text := file.read_text().strip()) != "max":
            limit = min(limit, int(text))
    return limit
