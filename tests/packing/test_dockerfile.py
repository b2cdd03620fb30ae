"""The patched Dockerfile, and what the container starts: all but the container itself."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from helpers import PROJECT, container_command, get, gunicorn, post, run

from simplestack.packing import dockerfile, local_server
from simplestack.serving.errors import StackError

REVIEWED = PROJECT / "Dockerfile.heroku"


def normalised(dockerfile: str) -> str:
    return re.sub(r"\b3\.\d+\b", "3.X", dockerfile)


def generated(bento: Path) -> str:
    return (bento / "env" / "docker" / "Dockerfile").read_text()


def test_the_dockerfile_is_the_one_that_was_reviewed(bento):
    assert normalised((bento / "Dockerfile").read_text()) == normalised(REVIEWED.read_text())


@pytest.mark.parametrize("before", dockerfile.CHANGES)
def test_a_generated_file_without_the_expected_lines_stops_packing(bento, before):
    line = before.splitlines()[-1]
    with pytest.raises(StackError, match="times, not once"):
        dockerfile.patch(generated(bento).replace(line, "# " + line))


def test_heroku_yml_names_the_dockerfile(bento):
    manifest = yaml.safe_load((bento / "heroku.yml").read_text())
    assert (bento / manifest["build"]["docker"]["web"]).is_file()


def test_every_user_can_read_what_is_packed(bento):
    modes = {path: path.stat().st_mode for path in bento.rglob("*")}
    unreadable = [p for p, m in modes.items() if m & 0o005 != 0o005 and (p.is_dir() or not m & 4)]
    assert not unreadable


def test_nothing_is_packed_that_serving_does_not_need(bento):
    examples = set(bento.glob("models/*/*/examples/*.jpg"))
    files = {path for path in bento.rglob("*") if path.is_file()} - examples
    suffixes = {path.suffix for path in files}
    assert suffixes <= {
        "",
        ".py",
        ".html",
        ".onnx",
        ".yaml",
        ".yml",
        ".json",
        ".txt",
        ".in",
        ".md",
        ".sh",
    }


def test_a_bad_setting_stops_it_at_once_with_one_line(bento):
    environment = {"BENTO_PATH": str(bento), "MAX_BYTES": "-1"}
    result = run("/bin/sh", "-c", container_command(bento), cwd=bento, **environment)
    assert result.returncode == 1
    assert result.stderr.startswith("error: MAX_BYTES=")
    assert result.stderr.count("\n") == 1


def test_a_damaged_model_is_not_served(bento, tmp_path):
    copy = shutil.copytree(bento, tmp_path / "bento")
    model = next(copy.glob("models/*/*/model.onnx"))
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    environment = {"BENTO_PATH": str(copy), "PORT": str(local_server.free_port())}
    result = run("/bin/sh", "-c", container_command(bento), cwd=copy, **environment)
    assert result.returncode != 0
    assert "the packed model is damaged: pack it again" in result.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_nothing_is_left_in_tmp_and_nothing_there_is_needed(bento, photo, tmp_path, workers):
    with gunicorn(bento, TMPDIR=str(tmp_path), WEB_CONCURRENCY=workers) as (url, _):
        assert post(url, photo.read_bytes()).ok
        for path in tmp_path.iterdir():  # as hosts sweep it
            shutil.rmtree(path)
        assert [post(url, photo.read_bytes()).status_code for _ in range(4)] == [200] * 4
        assert get(f"{url}/metrics").ok
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_command_serves_on_port_and_ends_on_sigterm(bento, workers):
    with gunicorn(bento, WEB_CONCURRENCY=workers) as (_, server):
        server.terminate()
        assert server.wait(timeout=15) == 0
