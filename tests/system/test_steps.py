"""From photos to answers by the scripts as people start them, and what ends each of them."""

import contextlib
import csv
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
from functools import partial
from pathlib import Path

import pytest
from helpers import (
    ODD_NAME,
    PROJECT,
    check_answer,
    container_command,
    error_line,
    get,
    gunicorn,
    odd_names,
    post,
    python,
    run,
    wait_until_ready,
)

from simplestack.packing import local_server
from simplestack.serving.errors import StackError

PREDICT = [sys.executable, str(PROJECT / "predict.py"), "--model"]


@pytest.fixture(scope="module")
def steps(pictures, tmp_path_factory):
    """An empty folder, what a training that packs at its end prints there, and the checkpoint."""
    folder = tmp_path_factory.mktemp("steps")
    arguments = ("--from-scratch", "--epochs", 1, "--data-dir", pictures, "--device", "cpu")
    home = {"BENTOML_HOME": "home"}  # relative to the folder
    result = python("train.py", *arguments, "--save-to-bento", "yes", cwd=folder, **home)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch("note: A demonstration: .* knows nothing of real photos.\n", result.stderr)
    return folder, result.stdout, next(folder.glob("saved_models/*.ckpt"))


def test_a_training_can_be_packed_at_its_end_and_save_to_bento_shows_it_again(steps):
    folder, trained, checkpoint = steps
    again = python("saveToBento.py", cwd=folder, BENTOML_HOME="home")
    assert (again.returncode, again.stderr) == (0, "")
    assert len(re.findall(r"^epoch +1/1 ", trained, re.MULTILINE)) == 1
    first, _, shown = again.stdout.partition("\n")
    assert first == f"saved_models/{checkpoint.name} is packed already."
    assert trained.endswith(f"\n{shown}")  # of which test_save_to_bento.py checks each line
    check_answer(json.loads(re.search(r"\.jpg \(correct: bees\) → (.*)\n", shown)[1]))
    saved_path = Path(re.search("\nsaved path: (.*)\n", shown)[1])
    assert saved_path.is_relative_to(folder / "home" / "bentos")
    assert (saved_path / "Dockerfile").exists()


def test_what_is_packed_from_a_checkpoint_is_served_until_ctrl_c(steps, photo):
    folder, _, checkpoint = steps
    home = {"BENTOML_HOME": str(folder / "home")}
    tag = run(sys.executable, "-m", "simplestack", "tag", checkpoint, **home).stdout.strip()
    port = str(local_server.free_port())
    url, command = f"http://127.0.0.1:{port}", ["bentoml", "serve", tag, "--port", port]
    with subprocess.Popen(command, env={**os.environ, **home}, start_new_session=True) as server:
        wait_until_ready(url, lambda: "" if server.poll() is None else "it has ended")
        assert post(url, photo.read_bytes()).ok
        os.killpg(server.pid, signal.SIGINT)  # as a terminal does
        assert server.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [("saveToBento.py", (), "run `python train.py`"), ("predict.py", ["none"], "there is no none")],
)
def test_a_mistake_is_one_line_without_a_traceback(tmp_path, script, arguments, said):
    result = python(script, *arguments, cwd=tmp_path)
    assert said in error_line(result)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)


def test_scripts_import_no_more_than_they_need(bento):
    for folder, module, slow in (
        (PROJECT, "predict", "{'torch', 'bentoml'}"),
        (PROJECT, "publish", "{'torch', 'bentoml'}"),
        (bento / "src", "service", "{'torch'}"),
    ):
        code = f"import {module}, sys; sys.exit(not {slow}.isdisjoint(sys.modules))"
        result = run(sys.executable, "-c", code, cwd=folder)
        assert result.returncode == 0, result.stderr


# predict.py


@odd_names
@pytest.mark.parametrize(
    ("options", "read", "odd"),
    [
        ([], csv.DictReader, [r"two\u000alines.jpg", r"caf\udce9.jpg"]),
        (["--json"], partial(map, json.loads), ["two\nlines.jpg", f"{ODD_NAME}.jpg"]),
    ],
)
def test_predict_answers_photos_of_any_name_and_shows_progress_on_a_terminal(
    model_file, photo, tmp_path, *, options, read, odd
):
    names = ['a "b".jpg', "käfer, 蜂.jpg", "two\nlines.jpg", f"{ODD_NAME}.jpg"]
    for name in names:
        shutil.copy(photo, tmp_path / name)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [*PREDICT, model_file, tmp_path / names[-1], tmp_path, *options]
    streams = {"stdout": subprocess.PIPE, "stderr": theirs}
    environment = {**os.environ, "LC_ALL": "C"}
    result = subprocess.run(command, **streams, env=environment, check=True)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # which is how Linux says that there is no more
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)
    assert b"4/4" in shown
    rows = list(read(result.stdout.decode().splitlines()))
    assert {row["path"] for row in rows} == {f"{tmp_path}/{name}" for name in (*names[:2], *odd)}
    assert {row["label"] for row in rows} <= {"ants", "bees"}


@pytest.fixture
def running(model_file, photo, tmp_path):
    """predict.py at work, once it has written rows; all of them don't fit into a pipe."""
    for i in range(3000):
        (tmp_path / f"{i:04}.jpg").symlink_to(photo)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*PREDICT, model_file, tmp_path], **pipes) as process:
        assert process.stdout.read(1) == b"p"
        yield process


def test_ctrl_c_ends_predict_with_one_line(running):
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate()
    assert (running.returncode, errors) == (-signal.SIGINT, b"\nStopped.\n")


def test_predict_ends_quietly_if_nobody_reads_on(running):
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait() == -signal.SIGPIPE


def test_packing_on_a_full_disk_is_one_clear_line_and_leaves_nothing_behind(steps):
    folder, *_ = steps
    left = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    pack = f"ulimit -f 2000; exec {sys.executable} {PROJECT}/saveToBento.py --no-examples"  # 1 MB
    result = run("sh", "-c", pack, cwd=folder, BENTOML_HOME="home")
    assert "File too large" in error_line(result)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == left


def test_no_answer_and_a_full_disk_are_failures_of_predict(model_file, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"junk")
    command = [*PREDICT, model_file, tmp_path]
    result = run(*command)
    assert (result.returncode, result.stderr) == (1, "")
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with Path("/dev/full").open("w") as full:
        pipes = {"stdout": full, "stderr": subprocess.PIPE}
        result = subprocess.run(command, **pipes, text=True, check=False)
    assert "No space left" in error_line(result)


# Servers


def test_a_bad_setting_stops_the_server(bento, capsys):
    with pytest.raises(StackError, match="doesn't start: see its log above"):
        local_server.serve(str(bento), MAX_BYTES="much").__enter__()
    assert "error: MAX_BYTES='much' is not a whole number" in capsys.readouterr().err


def test_a_bad_setting_and_a_damaged_model_stop_the_container(bento, tmp_path):
    copy = shutil.copytree(bento, tmp_path / "bento")
    model = next(copy.glob("models/*/*/model.onnx"))
    model.write_bytes(model.read_bytes()[:-1000])
    environment = {"BENTO_PATH": str(copy), "PORT": str(local_server.free_port())}
    command = ("/bin/sh", "-c", container_command(bento))
    damaged = run(*command, cwd=copy, **environment)
    assert damaged.returncode != 0
    assert f"the packed model {model} is missing or damaged: pack it again" in damaged.stderr
    bad = run(*command, cwd=copy, **environment, MAX_BYTES="-1")
    assert bad.stderr.startswith("error: MAX_BYTES=")
    assert (bad.returncode, bad.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_container_needs_nothing_in_tmp_and_ends_on_sigterm(bento, photo, tmp_path, workers):
    with gunicorn(bento, TMPDIR=str(tmp_path), WEB_CONCURRENCY=workers) as (url, server):
        assert post(url, photo.read_bytes()).ok
        for path in tmp_path.iterdir():  # as hosts sweep it
            shutil.rmtree(path)
        assert [post(url, photo.read_bytes()).status_code for _ in range(4)] == [200] * 4
        assert get(f"{url}/metrics").ok
        server.terminate()
        assert server.wait(timeout=15) == 0
    assert list(tmp_path.iterdir()) == []
