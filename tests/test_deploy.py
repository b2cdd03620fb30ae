"""deploy.sh, against commands that say what Heroku's and Docker's would."""

import os
import shutil
import subprocess
import sys

import pytest
from helpers import PROJECT, error_line, run

SHELL = ("sh", "cat", "cp", "dirname", "find", "grep", "head", "mktemp", "rm", "sed", "seq", "sort")
NO_ENGINE = "exit 1"
OLD_STORE = "true"
CONTAINERD_STORE = "echo '[[driver-type io.containerd.snapshotter.v1]]'"
NO_BUILDX = "[ $1 != buildx ]"
CONTAINERD_STORE_WITHOUT_BUILDX = f"{NO_BUILDX} && {CONTAINERD_STORE}"
NEW_APP = """case $1 in
    apps:info) [ -f "$0.made" ] && echo stack=container && echo web_url=http://127.0.0.1:9/ ||
        { echo "Couldn't find that app." >&2; exit 1; } ;;
    create) touch "$0.made" ;;
    logs) cat "${0%/*}/log" ;;
    esac"""


@pytest.fixture
def deploy(bento, pictures, tmp_path):
    """Run a copy of deploy.sh that finds no commands but a shell's own and those given."""
    (tmp_path / "photo.jpg").symlink_to(next((pictures / "val").rglob("*.jpg")))
    shutil.copy(PROJECT / "deploy.sh", tmp_path)
    for name in (*SHELL, "sleep", "tail", "tee", "touch", "tr", "uname"):
        (tmp_path / name).symlink_to(shutil.which(name))

    def start(
        *arguments: str, log: str = "", stdin=subprocess.DEVNULL, **scripts: str
    ) -> subprocess.CompletedProcess:
        (tmp_path / "log").write_text(log)
        for name, script in {"python": f"echo {bento}", **scripts}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)
        environment = {"PHOTO": "photo.jpg", "PATH": str(tmp_path), "READY_WITHIN": "1"}
        return run("sh", tmp_path / "deploy.sh", *arguments, stdin=stdin, **environment)

    return start


DOCUMENTATION = (PROJECT / "docs" / "deployment.md").read_text()
TOOLS = {"heroku": NEW_APP, "curl": "exit 1", "git": "true", "docker": OLD_STORE}


@pytest.mark.parametrize("arguments", [("--dry-run", "my-app"), ("my-app", "--dry-run")])
def test_a_dry_run_prints_the_block_of_commands_in_the_documentation(deploy, bento, arguments):
    result = deploy(*arguments, **TOOLS)
    assert result.returncode == 0
    assert result.stderr == ""
    block = result.stdout.replace(str(bento), "SAVED_PATH").replace("photo.jpg", "image.jpg")
    assert f"```sh\n{block}```" in DOCUMENTATION


@pytest.mark.parametrize("docker", [CONTAINERD_STORE, CONTAINERD_STORE_WITHOUT_BUILDX])
def test_the_documentation_has_the_other_ways_of_pushing_too(deploy, bento, docker):
    lines = deploy("my-app", "--dry-run", **{**TOOLS, "docker": docker}).stdout.split("\n")
    push = [x for x in lines if not x.startswith(("heroku ", "url=", "curl "))]
    block = "\n".join(push).replace(str(bento), "SAVED_PATH")
    assert f"```sh\n{block}```" in DOCUMENTATION


def test_a_dry_run_names_the_tools_that_are_missing(deploy):
    result = deploy("my-app", "--dry-run")
    assert result.returncode == 0
    assert [line.split()[1] for line in result.stderr.splitlines()] == ["heroku", "curl", "git"]


@pytest.mark.parametrize("arguments", [("--help",), ("my-app", "--help"), ("-h", "my-app")])
def test_help_is_printed_before_and_after_the_name(deploy, arguments):
    result = deploy(*arguments)
    assert result.returncode == 0
    assert result.stdout.startswith("usage: sh deploy.sh APP")


@pytest.mark.parametrize(
    ("docker", "command"),
    [
        (OLD_STORE, "heroku container:push web --app my-app"),
        (CONTAINERD_STORE, "oci-mediatypes=false,push=true"),
        (NO_BUILDX, "docker push registry.heroku.com/my-app/web"),
        (CONTAINERD_STORE_WITHOUT_BUILDX, "push --force https://git.heroku.com/my-app.git"),
        (None, "push --force https://git.heroku.com/my-app.git"),
    ],
    ids=["old store", "containerd store", "no buildx", "containerd without buildx", "no docker"],
)
def test_each_engine_has_its_way_of_pushing(deploy, docker, command):
    tools = {**TOOLS, "docker": docker} if docker else {k: TOOLS[k] for k in TOOLS if k != "docker"}
    assert command in deploy("my-app", "--dry-run", **tools).stdout


def test_the_commands_can_be_pasted_if_paths_have_spaces_and_quotes(deploy, tmp_path):
    folder = tmp_path / "it's a Bento"
    folder.mkdir()
    result = deploy("my-app", "--dry-run", **{**TOOLS, "python": f'echo "{folder}"'})
    line = next(line for line in result.stdout.splitlines() if "container:push" in line)
    assert run("sh", "-c", line.replace("heroku", "pwd;:")).stdout == f"{folder}\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["two", "names", "three"], ["--dry-run"], ["Capitals"], [""], ["my-app", "--what"]],
)
def test_a_deployment_without_a_good_name_says_how(deploy, arguments):
    assert "sh deploy.sh APP" in error_line(deploy(*arguments))


def test_a_deployment_without_anything_packed_says_what_to_do(deploy, tmp_path):
    python = f'BENTOML_HOME={tmp_path} PYTHONPATH={PROJECT} exec {sys.executable} "$@"'
    assert "make run" in error_line(deploy("my-app", python=python))


@pytest.mark.parametrize(
    ("left_out", "message"),
    [("heroku", "heroku is missing"), ("curl", "curl is missing"), ("docker git", "or docker")],
)
def test_what_is_missing_is_named_before_anything_is_done(deploy, left_out, message):
    tools = {name: script for name, script in TOOLS.items() if name not in left_out}
    assert message in error_line(deploy("my-app", **tools))


def test_without_an_engine_the_deployment_says_so(deploy):
    assert "start Docker" in error_line(deploy("my-app", **{**TOOLS, "docker": NO_ENGINE}))


def test_without_a_terminal_nothing_is_created_unasked(deploy):
    result = deploy("my-app", **TOOLS)
    assert "sh deploy.sh my-app --yes" in error_line(result)
    assert "$7 a month" in result.stdout
    assert "$ heroku create" not in result.stdout


@pytest.mark.parametrize(("answer", "created"), [("y", True), ("n", False), ("", False)])
def test_on_a_terminal_it_asks_before_it_creates(deploy, answer, created):
    terminal, stdin = os.openpty()
    os.write(terminal, f"{answer}\n".encode())
    result = deploy("my-app", stdin=stdin, **TOOLS)
    assert "Go on? [y/N]" in result.stdout
    assert ("$ heroku create my-app" in result.stdout) == created
    assert created or "nothing was created" in error_line(result)


# As devcenter.heroku.com/articles/error-codes has them.
@pytest.mark.parametrize(
    ("log", "remedy"),
    [
        (
            "heroku[web.1]: Error R10 (Boot timeout) -> Web process failed to bind to $PORT within"
            " 60 seconds of launch",
            "docker run -p 5000:5000",
        ),
        ("heroku[web.1]: Error R14 (Memory quota exceeded)", "WEB_CONCURRENCY=1 --app my-app"),
        ("heroku[web.1]: Error R15 (Memory quota vastly exceeded)", "heroku ps:resize"),
        ('heroku[router]: at=error code=H10 desc="App crashed" method=GET', "heroku config"),
        ("heroku[web.1]: State changed from starting to up", "heroku ps --app my-app"),
    ],
    ids=["R10", "R14", "R15", "H10", "none"],
)
def test_what_the_log_says_of_a_failure_is_explained(deploy, log, remedy):
    assert remedy in error_line(deploy("my-app", "--yes", log=log, **TOOLS))


@pytest.mark.parametrize(
    ("output", "remedy"),
    [
        ("unsupported", "docs/deployment.md"),
        ("unexpected status from PUT request: 405 Method Not Allowed", "docs/deployment.md"),
        ("manifest invalid: manifest invalid", "docs/deployment.md"),
        ("blob unknown: blob unknown to registry", "docs/deployment.md"),
        ("write /var/lib/docker/tmp: no space left on device", "docker system prune"),
        ("exec /bin/sh: exec format error", "QEMU"),
        ("unauthorized: authentication required", "heroku login"),
        ("something else", "see above"),
    ],
)
def test_what_a_failed_push_says_is_explained(deploy, output, remedy):
    build = f"[ $2 = version ] || {{ echo '{output}'; exit 1; }}"
    docker = f"case $1 in info) {CONTAINERD_STORE} ;; buildx) {build} ;; esac"
    result = deploy("my-app", "--yes", **{**TOOLS, "docker": docker})
    assert remedy in error_line(result)
    assert "container:release" not in result.stdout
