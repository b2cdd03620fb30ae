"""From photos to answers by the scripts as people start them, and what ends each of them."""

import contextlib
import csv
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import bentoml
import pytest
import yaml
from helpers import (
    ODD_NAME,
    PROJECT,
    check_answer,
    container_command,
    error_line,
    fresh_service,
    get,
    gunicorn,
    odd_names,
    post,
    python,
    run,
    wait_until,
)

from simplestack.packing import build, local_server
from simplestack.serving.errors import StackError

DISCLAIMER = (
    "note: A demonstration: trained from random weights on drawn pictures, knows nothing of real"
    " photos.\n"
)
PREDICT = [sys.executable, str(PROJECT / "predict.py")]


class Steps(NamedTuple):
    folder: Path
    training: str
    packing: str

    def run(self, script: str, *arguments: object, errors: str = "", **environment: str) -> str:
        """Run a script in the folder, with a relative BENTOML_HOME; return what it prints."""
        environment |= {"BENTOML_HOME": "home"}
        result = python(script, *arguments, cwd=self.folder, **environment)
        assert (result.returncode, result.stderr) == (0, errors)
        return result.stdout

    @property
    def checkpoint(self) -> Path:
        (path,) = self.folder.glob("saved_models/*.ckpt")
        return path


@pytest.fixture(scope="module")
def steps(pictures, tmp_path_factory) -> Steps:
    """A training and a packing in an empty folder."""
    steps = Steps(tmp_path_factory.mktemp("steps"), "", "")
    arguments = ("--from-scratch", "--epochs", 1, "--data-dir", pictures, "--device", "cpu")
    training = steps.run("train.py", *arguments, errors=DISCLAIMER)
    return steps._replace(training=training, packing=steps.run("saveToBento.py"))


def line(text: str, start: str) -> str:
    """Return what follows the start of a line."""
    return re.search(rf"^{start}(.*)$", text, re.MULTILINE)[1]


def test_training_ends_with_the_next_command(steps):
    assert len(re.findall(r"^epoch +1/1 ", steps.training, re.MULTILINE)) == 1
    assert "Save it into BentoML" not in steps.training  # there is no terminal
    path = steps.checkpoint.relative_to(steps.folder)
    assert steps.training.rstrip().endswith(f"Next: python saveToBento.py {path}")


def test_packing_has_predicted_a_photo_and_names_the_next_commands(steps):
    assert line(steps.packing, "tag: ").startswith("ant_or_bee_classifier:")
    check_answer(json.loads(line(steps.packing, r".*\.jpg → ")))
    saved_path = line(steps.packing, "saved path: ")
    assert saved_path.startswith(f"{steps.folder}/home/bentos/")
    assert Path(saved_path, "Dockerfile").exists()
    assert "Next: bentoml serve ant_or_bee_classifier:latest" in steps.packing
    assert "curl -X POST http://localhost:5000/predict" in steps.packing


def test_training_that_packs_at_its_end_finds_what_is_packed(steps):
    arguments = ("-c", steps.checkpoint, "--save-to-bento", "yes")
    again = steps.run("train.py", *arguments, errors=DISCLAIMER)
    assert "is packed already" in again
    assert line(again, "tag: ") == line(steps.packing, "tag: ")


@odd_names
def test_predict_answers_photos_of_any_name(steps, photo, tmp_path):
    odd = f"{ODD_NAME}.jpg"
    names = {'a "b".jpg', "käfer, 蜂.jpg", "two\nlines.jpg"}
    for name in (*names, odd):
        shutil.copy(photo, tmp_path / name)
    table = steps.run("predict.py", tmp_path, LC_ALL="C")
    rows = list(csv.DictReader(io.StringIO(table, newline="")))
    assert {row["path"] for row in rows} == {
        *(str(tmp_path / name) for name in names),
        rf"{tmp_path}/caf\udce9.jpg",
    }
    assert {row["label"] for row in rows} <= {"ants", "bees"}
    lines = steps.run("predict.py", tmp_path / odd, "--json")
    assert Path(json.loads(lines)["path"]).read_bytes() == photo.read_bytes()


def test_commands_for_the_shell_scripts(steps, tmp_path):
    module = ("-m", "simplestack")
    said = run(sys.executable, *module, "saved-path", BENTOML_HOME=str(steps.folder / "home"))
    assert said.stdout.strip() == line(steps.packing, "saved path: ")
    assert run(sys.executable, *module, "no-such-command").returncode == 2
    assert run(sys.executable, *module, "draw-sample", tmp_path).returncode == 0
    assert len(list(tmp_path.glob("train/*/*.jpg"))) == 80
    assert len(list(tmp_path.glob("val/*/*.jpg"))) == 40


def test_what_is_packed_is_served_until_ctrl_c(steps, pictures, photo):
    port = str(local_server.free_port())
    command = [sys.executable, "-m", "simplestack", "serve", steps.checkpoint, pictures]
    home = {"BENTOML_HOME": str(steps.folder / "home")}
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        env={**os.environ, **home, "PORT": port},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        said = ""
        while "The page: " not in said:
            more = server.stdout.readline()
            assert more, server.stderr.read()
            said += more
        taken = run(sys.executable, "-m", "simplestack", "check-port", PORT=port)
        post(f"http://127.0.0.1:{port}", photo.read_bytes())
        while " POST /predict 200 " not in said:  # the first is its own
            said += server.stdout.readline()
        server.send_signal(signal.SIGINT)
        rest, errors = server.communicate(timeout=60)
    check_answer(json.loads(line(said, r".*\.jpg → ")))
    assert re.search(r"^accuracy: [01]\.\d{4}, \d of 6 validation photos$", said, re.MULTILINE)
    assert rest.endswith("\nStopped.\n")
    assert (server.returncode, errors) == (0, "")
    assert f"port {port} is taken by another program" in error_line(taken)


def test_mistakes_are_one_line_without_a_traceback(photo, tmp_path):
    for script, arguments, said in (
        ("saveToBento.py", (), "run `python train.py`"),
        ("predict.py", (tmp_path / "none.jpg",), f"there is no {tmp_path}/none.jpg"),
        ("predict.py", (photo,), "python saveToBento.py"),  # nothing is packed
    ):
        result = python(script, *arguments, cwd=tmp_path, BENTOML_HOME=str(tmp_path / "home"))
        assert said in error_line(result)
        assert (result.returncode, result.stdout) == (1, "")
        assert len(result.stderr.splitlines()) == 1


def test_a_photo_that_cannot_be_answered_is_exit_code_1(steps, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"junk")
    home = str(steps.folder / "home")
    assert python("predict.py", tmp_path, BENTOML_HOME=home).returncode == 1


def test_scripts_import_no_more_than_they_need(bento, tmp_path):
    for folder, module, slow in (
        (PROJECT, "predict", "{'torch', 'bentoml', 'onnxruntime'}"),
        (bento / "src", "service", "{'torch'}"),
    ):
        code = f"import {module}, sys; sys.exit(not {slow}.isdisjoint(sys.modules))"
        result = run(sys.executable, "-c", code, cwd=folder)
        assert result.returncode == 0, result.stderr
    assert python("predict.py", "--help", BENTOML_HOME=str(tmp_path)).returncode == 0


# What ends them


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which libraries are loaded")
def test_ctrl_c_while_modules_load_says_that_packing_stopped(tmp_path):
    process = subprocess.Popen(
        [sys.executable, PROJECT / "saveToBento.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: "onnxruntime" in Path(f"/proc/{process.pid}/maps").read_text())
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "\nStopped.\n"
    assert process.returncode == 130


@pytest.fixture
def running(bento, photo, tmp_path) -> Iterator[subprocess.Popen]:  # noqa: ARG001
    """predict.py at work, once it has written rows; all of them don't fit into a pipe."""
    for i in range(3000):
        (tmp_path / f"{i:04}.jpg").symlink_to(photo)
    with subprocess.Popen(
        [*PREDICT, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.read(1) == b"p"
        yield process


def test_ctrl_c_ends_predict_with_one_line(running):
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate()
    assert running.returncode == 130
    assert errors == b"\nStopped.\n"


def test_predict_ends_quietly_if_nobody_reads_on(running):
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait() == -signal.SIGPIPE


@pytest.mark.usefixtures("bento")
def test_a_full_disk_ends_predict_with_one_line(photo):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [*PREDICT, photo], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert "No space left" in error_line(result)


@pytest.mark.usefixtures("bento")
def test_predict_shows_progress_on_a_terminal(pictures):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    folder = pictures / "val" / "ants"
    result = subprocess.run([*PREDICT, folder], stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # which is how Linux says that there is no more
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)
    assert b"3/3" in shown
    assert len(result.stdout.splitlines()) == 4


# Servers


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's, when it imports a service
def test_two_bentos_beside_each_other_serve_their_own_classes(bento, bentoml_url, photo):
    about = yaml.safe_load(next(bento.glob("models/*/*/model.yaml")).read_text())["metadata"]
    classes = {"classes": ["Hummel", "Wespe"], "notice": ""}
    model_file = next(bento.glob("models/*/*/model.onnx"))
    with fresh_service():
        other = build.build_bento("other", model_file, about | classes, {"checkpoint": "x"})
    assert build.latest().tag.name == "other"
    assert build.latest(bento.parent.name).path == str(bento)
    with local_server.serve("other:latest") as url:
        page = get(url).text + get(f"{url}/docs.json").text + get(f"{url}/model.json").text
        answers = [post(x, photo.read_bytes()).json() for x in (url, bentoml_url)]
    bentoml.models.delete(other.info.all_models[0].tag)
    bentoml.delete(other.tag)
    assert set(answers[0]["probabilities"]) == {"Hummel", "Wespe"}
    check_answer(answers[1])
    assert not re.search(r"\b(ant|bee)s?\b", page, re.IGNORECASE)


def test_a_bad_setting_stops_the_server(bento, capsys):
    with pytest.raises(StackError, match="doesn't start: see its log above"):
        local_server.serve(str(bento), MAX_BYTES="much").__enter__()
    assert "\nerror: MAX_BYTES='much' is not a whole number" in capsys.readouterr().err


def run_container(bento: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run the container's CMD until it ends."""
    environment |= {"BENTO_PATH": str(bento), "PORT": str(local_server.free_port())}
    return run("/bin/sh", "-c", container_command(bento), cwd=bento, **environment)


def test_a_bad_setting_stops_the_container_at_once_with_one_line(bento):
    result = run_container(bento, MAX_BYTES="-1")
    assert result.returncode == 1
    assert result.stderr.startswith("error: MAX_BYTES=")
    assert result.stderr.count("\n") == 1


def test_a_damaged_model_is_not_served(bento, tmp_path):
    copy = shutil.copytree(bento, tmp_path / "bento")
    model = next(copy.glob("models/*/*/model.onnx"))
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    result = run_container(copy)
    assert result.returncode != 0
    assert "the packed model is damaged: pack it again" in result.stderr


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
