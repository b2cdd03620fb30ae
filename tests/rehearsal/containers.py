"""A Docker Engine and a Heroku for the tests of this folder, and containers in that engine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import PROJECT, run, wait_until_ready, write_script
from rehearsal.stand_in import HEROKUS_RULES

from simplestack.packing import local_server

STATE = PROJECT / ".rehearse"
BASE = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
MB = 1_000_000
rehearsal: dict[str, str] = {}
"""The environment of commands that have a Docker Engine and a Heroku around them."""


def docker(*arguments: object) -> str:
    result = run("docker", *arguments, **rehearsal)
    assert result.returncode == 0, result.stderr
    return (result.stdout + result.stderr).strip()


@contextmanager
def background(*command: object, **environment: str) -> Iterator[subprocess.Popen]:
    """Run a program in the background; finally close its standard input, and wait for it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    words, environment = [str(word) for word in command], os.environ | environment
    process = subprocess.Popen(words, cwd=PROJECT, env=environment, text=True, **pipes)
    try:
        yield process
    finally:
        process.communicate(timeout=60)


@dataclass
class Container:
    """A container that serves on `url`."""

    id: str
    url: str

    def failure(self) -> str:
        """Return the log if the container has ended, else ""."""
        running = docker("inspect", "--format", "{{.State.Running}}", self.id) == "true"
        return "" if running else f"{self.id} has ended:\n{docker('logs', self.id)}"

    def memory(self) -> tuple[int, int]:
        """Return the limit and, without what can be dropped, the use, in bytes."""
        group = self.cgroup()
        files = ("memory.max", "memory.current", "inactive_file")
        if (group / "memory.limit_in_bytes").exists():
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit, used = (int((group / name).read_text()) for name in files[:2])
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit, used - int(stat[files[2]])

    def cgroup(self) -> Path:
        """Return the folder of the control group that limits and counts the memory."""
        pid = docker("inspect", "--format", "{{.State.Pid}}", self.id)
        for line in Path("/proc", pid, "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                return Path("/sys/fs/cgroup/memory" + path)
            if not controllers and Path("/sys/fs/cgroup" + path, "memory.max").exists():
                return Path("/sys/fs/cgroup" + path)
        pytest.skip("control groups that limit memory are missing on this machine")


@contextmanager
def running(*arguments: object, port: int) -> Iterator[Container]:
    """Run a container that serves on a port of this machine, until it is ready and used."""
    name = docker("run", "--detach", *arguments).splitlines()[-1]
    container = Container(name, f"http://127.0.0.1:{port}")
    try:
        wait_until_ready(container.url, container.failure)
        yield container
    finally:
        docker("rm", "--force", container.id)


@contextmanager
def dyno(image: str, *options: str, command: tuple[str, ...] = ()) -> Iterator[Container]:
    """Run an image under Heroku's rules."""
    port = local_server.free_port()
    rules = (*HEROKUS_RULES, "--env", f"PORT={port}")
    with running(*rules, *options, image, *command, port=port) as container:
        yield container


def on_the_path(folder: Path, **scripts: str) -> str:
    """Return a PATH on which these commands come before all others."""
    for name, script in scripts.items():
        write_script(folder / name, script)
    return f"{folder}:{rehearsal['PATH']}"
