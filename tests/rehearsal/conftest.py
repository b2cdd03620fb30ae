"""The rehearsal's Docker Engine and Heroku, with the image in it; built once a session."""

import json
import time
from collections.abc import Iterator

import pytest
from helpers import run
from rehearsal.containers import BASE, STATE, background, rehearsal


@pytest.fixture(scope="session")
def engine(tmp_path_factory) -> Iterator[None]:
    """A Docker Engine and a Heroku, for as long as the tests run."""
    for part in ("engine", "node_modules/.bin/heroku"):
        if not (STATE / part).exists():
            pytest.skip(f".rehearse/{part} is missing: sh tests/rehearsal/install.sh")
    file = tmp_path_factory.mktemp("rehearsal") / "environment"
    tell = "python -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    script = f"{tell} >{file}.part; mv {file}.part {file}; cat"
    rehearse = ("sh", "tests/rehearsal/rehearse.sh", "sh", "-c", script)
    with background(*rehearse, INSTALLED="1") as process:
        while not file.exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.1)
        rehearsal.update(json.loads(file.read_text()))
        if run("docker", "image", "inspect", BASE, **rehearsal).returncode != 0:
            pytest.skip(f"the base image {BASE} is missing: sh tests/rehearsal/install.sh")
        yield


@pytest.fixture(scope="session")
def image(bento, engine) -> str:  # noqa: ARG001
    result = run("docker", "build", ".", "-t", "resnet_heroku", cwd=bento, **rehearsal)
    assert result.returncode == 0, result.stderr
    return "resnet_heroku"
