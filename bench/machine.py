"""What a measurement was made on, for the first lines of its results."""

import contextlib
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

PACKAGES = ("torch", "onnxruntime", "bentoml", "gunicorn", "pillow")


def describe() -> str:
    """Return date, processor, cores, Python and the packages that matter."""
    names = [platform.processor() or platform.machine()]
    if (info := Path("/proc/cpuinfo")).exists():
        names = [x.partition(": ")[2] for x in info.read_text().splitlines() if "model name" in x]
    cores = os.cpu_count()
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {cores} cores of {names[0]}, {platform.system()},"
        f" Python {platform.python_version()}\n{versions}\n"
    )


def memory(pid: int) -> int:
    """Return the memory of a process and all its children, in bytes, shared pages counted once."""
    process = psutil.Process(pid)
    total = 0
    for member in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            total += member.memory_full_info().pss
    return total
