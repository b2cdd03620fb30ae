"""What a measurement was made on, for the first lines of its results."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "onnxruntime", "bentoml", "gunicorn", "pillow")


def describe() -> str:
    """Give date, processor, cores, Python and the packages that matter."""
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
    """Give the memory of a process and all its children, in bytes, shared pages counted once."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has just ended
    own = 1024 * int(text.partition("\nPss:")[2].split()[0])
    return own + sum(memory(int(child)) for child in children)
