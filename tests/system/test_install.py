"""install.sh: where torch comes from, with indexes of tiny packages of the same names."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pip
import pytest
from helpers import PROJECT, error_line, run, wait_until, write_script

SCRIPT = PROJECT / "install.sh"
CPU_INDEX = re.search(r"index=(https\S+)", SCRIPT.read_text())[1]
PIP = "-m pip install --disable-pip-version-check"
PIP_ITSELF = f"{PIP} --quiet -r /dev/stdin"
FIRST = f"{PIP} --index-url {{}} --no-deps --timeout 5 --retries 0 torch==1.0 torchvision==1.0"
HAS_GPU = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")


def write_index(folder, version):
    for name in ("pip", "torch", "torchvision"):
        wheel = f"{name}-{version}-py3-none-any.whl"
        (folder / name).mkdir(parents=True)
        (folder / name / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        with zipfile.ZipFile(folder / name / wheel, "w") as archive:
            about = ("WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            for file, text in (("METADATA", metadata), about, ("RECORD", "")):
                archive.writestr(f"{name}-{version}.dist-info/{file}", text)
    return folder.as_uri()


def pin(wheel):
    hashes = (hashlib.sha256(data).hexdigest() for data in (b"the archive of its source", wheel))
    return " \\\n    ".join(("pip==1.0", *(f"--hash=sha256:{x}" for x in hashes))) + "\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text("torch==1.0\ntorchvision==1.0\n")
    (tmp_path / "requirements-serve.txt").write_text(f"a==1\n{pin(b'pip')}z==1\n")
    (tmp_path / "site").mkdir()  # for pip, which would take seconds to put into each environment
    (tmp_path / "site" / "pip").symlink_to(Path(pip.__file__).parent)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def install(project, index, **environment):
    assert not run(sys.executable, "-m", "venv", "--without-pip", project / ".venv").stderr
    pip_settings = {"PYTHONPATH": str(project / "site"), "PIP_INDEX_URL": index}
    return run("sh", SCRIPT, cwd=project, **pip_settings, **environment)


def test_pip_takes_torch_from_the_index_that_is_named_or_else_from_the_usual_one(project):
    usual, cpu = (write_index(project / v, v) for v in ("1.0", "1.0+cpu"))
    (wheel,) = project.glob("1.0/pip/*.whl")
    (project / "requirements-serve.txt").write_text(pin(wheel.read_bytes()))
    for index, version in ((cpu, "1.0+cpu"), ("http://127.0.0.1:9/", "1.0")):
        shutil.rmtree(project / ".venv", ignore_errors=True)
        result = install(project, usual, TORCH_INDEX=index)
        assert result.returncode == 0, result.stderr
        found = {path.name for path in project.glob(".venv/lib/*/site-packages/*.dist-info")}
        torch = {f"{name}-{version}.dist-info" for name in ("torch", "torchvision")}
        assert found == {"pip-1.0.dist-info", *torch}
        assert f"torch and torchvision from {index}\n" in result.stdout
        assert ("note: can't get them from there" in result.stderr) == (index != cpu)


def test_pips_arguments_depend_on_the_machine_and_the_file(project):
    record = 'echo "$@" >>calls; case $@ in *stdin) cat >pip.txt ;; esac'
    write_script(project / "v" / "bin" / "python", record)
    (project / "dev.txt").write_text("pytest==9.0\n")
    named, all_ = {"TORCH_INDEX": "https://named/"}, f"{PIP} -r requirements.txt"
    for system, environment, file, asked in (
        ("Linux", {}, [], [all_] if HAS_GPU else [FIRST.format(CPU_INDEX), all_]),
        ("Linux", {"TORCH_INDEX": ""}, [], [all_]),
        ("Linux", {}, ["dev.txt"], [f"{PIP} -r dev.txt"]),
        ("Darwin", {}, [], [all_]),
        ("Linux with a GPU", {}, [], [all_]),
        ("Linux with a GPU", named, [], [FIRST.format("https://named/"), all_]),
    ):
        write_script(project / "bin" / "uname", f"echo {system.split()[0]}")
        if "GPU" in system:  # which stays in the machine
            write_script(project / "bin" / "nvidia-smi", "true")
        result = run("sh", SCRIPT, *file, cwd=project, VENV="v", **environment)
        assert (result.returncode, result.stderr) == (0, "")
        assert (project / "calls").read_text().splitlines() == [PIP_ITSELF, *asked]
        assert (project / "pip.txt").read_text() == pin(b"pip")
        (project / "calls").unlink()


NO_PIP = (
    "error: can't install the packages of requirements.txt: the package index can't be reached, or"
    " has no pip of that version and hash. Check the connection, then run this again"
)


def test_a_pip_whose_hash_is_wrong_installs_nothing(project):
    result = install(project, write_index(project / "1.0", "1.0"), TORCH_INDEX="")
    assert error_line(result) == NO_PIP
    assert not [*project.glob(".venv/lib/*/site-packages/*.dist-info")]


def test_an_index_that_cannot_be_reached_is_one_clear_line(project):
    write_script(project / ".venv" / "bin" / "python", "echo no connection >&2; exit 2")
    result = run("sh", SCRIPT, cwd=project, TORCH_INDEX="")
    assert (result.returncode, result.stderr) == (1, f"{NO_PIP}\n")
    log = 'case $@ in *stdin) ;; *) echo "$@: failed" >&2 && exit 1 ;; esac'  # pip's own messages
    write_script(project / ".venv" / "bin" / "python", log)
    result = run("sh", SCRIPT, cwd=project, TORCH_INDEX="http://localhost:9/")
    note, pips, error = result.stderr.splitlines()
    assert note.startswith("note: can't get them from there")
    assert pips == f"{PIP} -r requirements.txt: failed"
    assert error.startswith("error: can't install the packages of requirements.txt: see above.")


def test_ctrl_c_ends_it_and_pip(project):
    write_script(project / ".venv" / "bin" / "python", "touch begun; exec sleep 300")
    started = subprocess.Popen(["sh", SCRIPT], cwd=project, start_new_session=True)
    wait_until((project / "begun").exists)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does
    assert started.wait(timeout=30) == 130
