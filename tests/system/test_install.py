"""install.sh: where torch comes from, with indexes of tiny packages of the same names."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pip
import pytest
from helpers import PROJECT, run

PACKAGES = ("torch", "torchvision")
SCRIPT = PROJECT / "install.sh"
CPU_INDEX = re.search(r"index=(https\S+)", SCRIPT.read_text())[1]


def write_index(folder: Path, version: str) -> str:
    """Write an index of both packages in one version; return its address."""
    for name in PACKAGES:
        wheel = f"{name}-{version}-py3-none-any.whl"
        info = f"{name}-{version}.dist-info"
        (folder / name).mkdir(parents=True)
        (folder / name / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
        with zipfile.ZipFile(folder / name / wheel, "w") as archive:
            metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            archive.writestr(f"{info}/METADATA", metadata)
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
    return folder.as_uri()


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder that needs both, where a second lasts no longer than it must."""
    (tmp_path / "requirements.txt").write_text("torch==1.0\nother==2.0\ntorchvision==1.0\n")
    (tmp_path / "bin").mkdir()
    write_script(tmp_path / "bin" / "sleep", f"exec {shutil.which('sleep')} 0.05")
    return tmp_path


def write_script(file: Path, script: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def install(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    path = f"{project / 'bin'}:{os.environ['PATH']}"
    return run("sh", SCRIPT, *arguments, cwd=project, **{"PATH": path, **environment})


def test_pip_installs_torch_from_the_index_that_is_named_or_else_from_the_usual_one(
    project, subtests
):
    (project / "requirements.txt").write_text("torch==1.0\ntorchvision==1.0\n")
    (project / "site").mkdir()  # pip, which would take seconds to put into each environment
    (project / "site" / "pip").symlink_to(Path(pip.__file__).parent)
    usual, cpu = (write_index(project / v, v) for v in ("1.0", "1.0+cpu"))
    for index, version in ((cpu, "1.0+cpu"), ("http://127.0.0.1:9/", "1.0")):
        with subtests.test(index=index):
            shutil.rmtree(project / ".venv", ignore_errors=True)
            assert not run(sys.executable, "-m", "venv", "--without-pip", project / ".venv").stderr
            pip_settings = {"PYTHONPATH": str(project / "site"), "PIP_INDEX_URL": usual}
            result = install(project, TORCH_INDEX=index, **pip_settings)
            assert result.returncode == 0, result.stderr
            found = {path.name for path in project.glob(".venv/lib/*/site-packages/*.dist-info")}
            assert found == {f"{name}-{version}.dist-info" for name in PACKAGES}
            assert f"torch and torchvision from {index}\n" in result.stdout
            assert ("note: can't get them from there" in result.stderr) == (
                index.startswith("http:")
            )


def test_what_pip_is_asked_for_depends_on_the_machine_and_the_file(project, subtests):
    write_script(project / "v" / "bin" / "python", 'echo "$@" >>calls')
    (project / "dev.txt").write_text("pytest==9.0\n")
    for name in ("linux", "mac", "gpu"):
        system = "Darwin" if name == "mac" else "Linux"
        write_script(project / name / "uname", f"echo {system}")
    write_script(project / "gpu" / "nvidia-smi", "true")
    always = "-m pip install --disable-pip-version-check --progress-bar off"
    first, all_ = (
        f"{always} --index-url {{}} --no-deps --timeout 5 --retries 0 torch==1.0 torchvision==1.0",
        f"{always} -r requirements.txt",
    )
    has_gpu = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    for machine, environment, arguments, asked in (
        ("linux", {}, [], [all_] if has_gpu else [first.format(CPU_INDEX), all_]),
        ("mac", {}, [], [all_]),
        ("gpu", {}, [], [all_]),
        ("linux", {"TORCH_INDEX": ""}, [], [all_]),
        ("gpu", {"TORCH_INDEX": "https://named/"}, [], [first.format("https://named/"), all_]),
        ("linux", {}, ["dev.txt"], [f"{always} -r dev.txt"]),
    ):
        with subtests.test(machine, arguments=arguments, **environment):
            path = f"{project / machine}:{project / 'bin'}:{os.environ['PATH']}"
            result = install(project, *arguments, PATH=path, VENV="v", **environment)
            assert (result.returncode, result.stderr) == (0, "")
            assert result.stdout.startswith(
                f"Installing the packages of {(*arguments, 'requirements.txt')[0]}\n"
            )
            assert (project / "calls").read_text().splitlines() == asked
            (project / "calls").unlink()


def test_large_downloads_and_what_failed_are_shown(project):
    said = """Collecting torch==1.0
  Downloading torch-1.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (30 kB)
Downloading torch-1.0-cp311-cp311-manylinux_2_28_x86_64.whl (700.2 MB)
  Downloading nvidia_nccl-2.1-py3-none-any.whl (1.2 GB)
Requirement already satisfied: numpy
  Using cached pillow-1.0.whl
ERROR: No space left on device"""
    failing = f"cat <<'END'\n{said}\nEND\nsleep 0.1\nexit 1"
    write_script(project / ".venv" / "bin" / "python", failing)
    result = install(project, TORCH_INDEX="")
    assert result.returncode == 1
    assert result.stdout.splitlines()[1:] == [
        "downloading torch-1.0 (700.2 MB)",
        "downloading nvidia_nccl-2.1 (1.2 GB)",
    ]
    assert result.stderr == "ERROR: No space left on device\n"


def test_a_terminal_shows_the_seconds_and_ctrl_c_ends_pip_too(project):
    write_script(
        project / ".venv" / "bin" / "python",
        """trap 'echo stopped >end; exit' TERM
        touch begun
        for i in $(seq 300); do sleep 1; done
        echo went on >end""",
    )
    (project / "tmp").mkdir()
    path = f"{project / 'bin'}:{os.environ['PATH']}"
    terminal, stdout = os.openpty()
    started = subprocess.Popen(
        ["sh", SCRIPT],
        cwd=project,
        env={**os.environ, "PATH": path, "TMPDIR": str(project / "tmp"), "TORCH_INDEX": ""},
        stdout=stdout,
        stderr=subprocess.DEVNULL,
    )
    os.close(stdout)  # so that reading ends if the script does
    shown = b""
    while b"\n1 s\r2 s\r" not in shown or not (project / "begun").exists():
        shown += os.read(terminal, 1000)
    started.send_signal(signal.SIGINT)
    assert started.wait(timeout=30) == 130
    while not (end := project / "end").exists() or not end.read_text():
        time.sleep(0.01)
    assert end.read_text() == "stopped\n"
    assert not list((project / "tmp").iterdir())  # no log
    os.close(terminal)
