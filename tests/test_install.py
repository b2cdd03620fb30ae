"""install.sh: where torch comes from, with indexes of tiny packages of the same names."""

import sys
import zipfile
from pathlib import Path

import pytest
from helpers import PROJECT, run

PACKAGES = ("torch", "torchvision")


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
def install(tmp_path):
    """Run install.sh in a project that needs both; return what it said and what is installed."""
    (tmp_path / "requirements.txt").write_text("torch==1.0\ntorchvision==1.0\n")
    assert run(sys.executable, "-m", "venv", tmp_path / ".venv").returncode == 0

    def install(**environment: str) -> tuple[str, list[str]]:
        result = run("sh", PROJECT / "install.sh", cwd=tmp_path, **environment)
        assert result.returncode == 0, result.stderr
        found = run(tmp_path / ".venv" / "bin" / "pip", "freeze").stdout.split()
        return result.stdout + result.stderr, found

    return install


def test_torch_comes_from_the_index_that_is_named(install, tmp_path):
    usual, cpu = (write_index(tmp_path / v, v) for v in ("1.0", "1.0+cpu"))
    _, found = install(TORCH_INDEX=cpu, PIP_INDEX_URL=usual)
    assert found == ["torch==1.0+cpu", "torchvision==1.0+cpu"]


def test_an_index_that_cannot_be_reached_is_said_and_the_usual_one_taken(install, tmp_path):
    usual = write_index(tmp_path / "1.0", "1.0")
    said, found = install(TORCH_INDEX="http://127.0.0.1:9/", PIP_INDEX_URL=usual)
    assert found == ["torch==1.0", "torchvision==1.0"]
    assert "note: can't get them from there" in said


def test_no_index_is_the_usual_one(install, tmp_path):
    said, found = install(TORCH_INDEX="", PIP_INDEX_URL=write_index(tmp_path / "1.0", "1.0"))
    assert found == ["torch==1.0", "torchvision==1.0"]
    assert "Installing torch and torchvision from" not in said


def test_what_torch_pins_itself_is_not_pinned():
    pins = (PROJECT / "requirements.txt").read_text().splitlines()
    assert not [pin for pin in pins if pin.startswith(("cuda", "nvidia", "triton"))]
