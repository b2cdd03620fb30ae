"""Describe the machine, measure the memory of processes, and run a program beside a measurement."""

import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

PACKAGES = ("torch", "onnxruntime", "bentoml", "gunicorn", "pillow")
BUSY = "while True: pass"  # for `beside`: keeps one core busy


def describe() -> str:
    """Return the date, the processor and the versions of Python and PACKAGES, in two lines."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (match := re.search(r"model name\s*: (.*)", info.read_text())):
        processor = match[1]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores of {processor}, {platform.system()},"
        f" Python {platform.python_version()}\n{versions}\n"
    )


def memory(pid: int) -> int:
    """Return the memory of a process and its descendants, in bytes; shared pages count once."""
    process = psutil.Process(pid)
    total = 0
    for member in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it just ended
            total += member.memory_full_info().pss
    return total


@contextlib.contextmanager
def beside(program: str) -> Iterator[None]:
    """Run a Python program at the same time, until the measurement ends."""
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        try:
            yield
        finally:
            process.kill()
