"""predict.py: a folder of photos in, a table of answers out."""

import contextlib
import csv
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ODD_NAME, PROJECT, error_line, odd_names, post, python

COMMAND = [sys.executable, str(PROJECT / "predict.py")]

pytestmark = pytest.mark.usefixtures("bento")


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory) -> Path:
    """A folder with photos at several depths, and files that are none."""
    folder = tmp_path_factory.mktemp("mine") / "photos"
    photos = sorted(pictures.glob("val/*/*.jpg"))
    for name, photo in zip(("b.jpg", "a/2.JPG", "a/x/1.jpeg"), photos, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder / name)
    (folder / "notes.txt").write_text("hello")
    (folder / ".hidden.jpg").write_text("hello")
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_each_photo_of_a_folder_is_a_row(folder):
    result = python("predict.py", folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("path,label,confidence,similarity,unlike,error\n")
    paths = [row["path"] for row in rows(result.stdout)]
    assert paths == [str(folder / name) for name in ("a/2.JPG", "a/x/1.jpeg", "b.jpg")]
    assert all(row["label"] in {"ants", "bees"} for row in rows(result.stdout))
    assert all(0.5 <= float(row["confidence"]) <= 1 for row in rows(result.stdout))
    assert all(0 <= float(row["similarity"]) <= 1 for row in rows(result.stdout))
    assert {row["unlike"] for row in rows(result.stdout)} == {""}  # too few training photos


def test_a_photo_that_is_named_twice_is_one_row(folder):
    result = python("predict.py", folder / "b.jpg", folder, "b.jpg", cwd=folder)
    assert len(rows(result.stdout)) == 4  # a relative path is another


def test_answers_are_the_services(pictures, bentoml_url):
    result = python("predict.py", "--json", pictures / "val")
    for line in result.stdout.splitlines():
        answer = json.loads(line)
        photo = Path(answer.pop("path"))
        assert answer == post(bentoml_url, photo.read_bytes()).json()


def test_a_broken_photo_is_a_row_with_the_services_error(photo, tmp_path, bentoml_url):
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[:-2000])
    shutil.copy(photo, tmp_path / "whole.jpg")
    result = python("predict.py", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    broken, whole = rows(result.stdout)
    error = post(bentoml_url, (tmp_path / "cut.jpg").read_bytes()).json()["error"]
    assert broken == {**broken, "label": "", "confidence": "", "error": error}
    assert whole["error"] == ""


def test_a_named_photo_is_tried_whatever_its_suffix(photo, tmp_path):
    shutil.copy(photo, tmp_path / "IMG_1")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.7")
    result = python("predict.py", "--json", tmp_path / "IMG_1", tmp_path / "notes.pdf")
    answer, error = map(json.loads, result.stdout.splitlines())
    assert sorted(answer["probabilities"]) == ["ants", "bees"]
    assert list(error) == ["path", "error"]
    assert "This is a PDF file" in error["error"]


def test_no_answer_at_all_is_a_failure(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"junk")
    result = python("predict.py", tmp_path)
    assert result.returncode == 1
    assert "not an image" in rows(result.stdout)[0]["error"]


def test_a_path_that_is_missing_ends_it_before_any_work(folder):
    result = python("predict.py", folder, folder / "none.jpg")
    assert f"there is no {folder}/none.jpg" in error_line(result)
    assert result.stdout == ""


def test_a_folder_without_photos_is_one_clear_line(tmp_path):
    assert "has no photos in it" in error_line(python("predict.py", tmp_path))


def test_without_a_model_it_says_what_to_do(folder, tmp_path):
    result = python("predict.py", folder, BENTOML_HOME=str(tmp_path))
    assert "python saveToBento.py" in error_line(result)
    assert result.stdout == ""


@odd_names
def test_a_name_that_is_not_utf8_is_escaped(photo, tmp_path):
    shutil.copy(photo, tmp_path / f"{ODD_NAME}.jpg")
    table = subprocess.run([*COMMAND, tmp_path], capture_output=True, check=True).stdout
    assert rf"{tmp_path}/caf\udce9.jpg,".encode() in table
    line = subprocess.run([*COMMAND, tmp_path, "--json"], capture_output=True, check=True).stdout
    assert Path(json.loads(line)["path"]).read_bytes() == photo.read_bytes()


@pytest.mark.parametrize("name", ["käfer, 蜂.jpg", 'a "b".jpg', "two\nlines.jpg"])
def test_any_other_name_is_read_back_as_it_is(photo, tmp_path, name):
    shutil.copy(photo, tmp_path / name)
    result = python("predict.py", tmp_path, LC_ALL="C")
    assert [row["path"] for row in rows(result.stdout)] == [str(tmp_path / name)]


@pytest.fixture
def many(photo, tmp_path) -> Path:
    """A folder with so many photos that their rows don't fit into a pipe."""
    for i in range(3000):
        (tmp_path / f"{i:04}.jpg").symlink_to(photo)
    return tmp_path


@pytest.fixture
def running(many) -> Iterator[subprocess.Popen]:
    """The script at work, once it has written rows."""
    with subprocess.Popen(
        [*COMMAND, many], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.read(1) == b"p"
        yield process


def test_ctrl_c_ends_it_with_one_line(running):
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate()
    assert running.returncode == 130
    assert errors == b"\nStopped.\n"


def test_it_ends_quietly_if_nobody_reads_on(running):
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait() == -signal.SIGPIPE


def test_a_full_disk_is_one_clear_line(folder):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [*COMMAND, folder], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert "No space left" in error_line(result)


def test_progress_is_shown_on_a_terminal(folder):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    result = subprocess.run([*COMMAND, folder], stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # which is how Linux says that there is no more
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)
    assert b"3/3" in shown
    assert len(result.stdout.splitlines()) == 4


def test_help_needs_no_model_and_no_torch(tmp_path):
    result = python("predict.py", "--help", BENTOML_HOME=str(tmp_path))
    assert result.returncode == 0
    slow = "{'torch', 'bentoml', 'onnxruntime'}"
    code = f"import predict, sys; sys.exit(not {slow}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0
