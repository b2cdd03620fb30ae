"""deploy.sh, with scripts in place of Heroku's and Docker's commands."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from helpers import PROJECT, error_line, run, write_script

SHELL = "sh cat dirname find grep sed sort tail touch"
GIT = "push --force https://git.heroku.com/my-app.git"
OLD_STORE = "true"
CONTAINERD_STORE = "echo '[[driver-type io.containerd.snapshotter.v1]]'"
NO_BUILDX = "[ $1 != buildx ]"
NEITHER = f"{NO_BUILDX} && {CONTAINERD_STORE}"
NEW_APP = """case $1 in
    apps:info) [ -f "$0.made" ] && echo stack=container && echo web_url=http://127.0.0.1:9/ ||
        { echo "Couldn't find that app." >&2; exit 1; } ;;
    create) touch "$0.made" ;;
    logs) cat "${0%/*}/log" ;;
    esac"""
TOOLS = {"heroku": NEW_APP, "curl": "exit 1", "git": "true", "docker": OLD_STORE}
TOOLS |= {"uname": "echo x86_64"}
READY = """case $* in *predict*) echo '{"label": "bees"}' ;; esac"""  # for curl
CREATE = "heroku create my-app --stack container --no-remote"


@pytest.fixture
def deploy(bento, pictures, tmp_path):
    """Run a copy of deploy.sh with a shell's commands and TOOLS, which note their calls.

    Another script can be given for each of them, or None, if it is missing.
    The result has the commands that were `printed`, and the `calls` that do more than look.
    """
    (tmp_path / "photo.jpg").symlink_to(next((pictures / "val").rglob("*.jpg")))
    shutil.copy(PROJECT / "deploy.sh", tmp_path)
    for name in SHELL.split():
        (tmp_path / name).symlink_to(shutil.which(name))

    def start(*arguments, log="", stdin=subprocess.DEVNULL, environment=None, **scripts):
        (tmp_path / "log").write_text(log)
        (tmp_path / "calls").write_text("")
        (tmp_path / "heroku.made").unlink(missing_ok=True)
        for name, script in {**TOOLS, "python": f"echo {bento}", **scripts}.items():
            (tmp_path / name).unlink(missing_ok=True)
            if script:
                note = 'echo "${0##*/} $*" >>"${0%/*}/calls"'
                write_script(tmp_path / name, f"{note}\n{script}")
        settings = {"PHOTO": "photo.jpg", "PATH": str(tmp_path), "READY_WITHIN": "1"}
        settings |= {"API_TOKEN": "", **(environment or {})}
        result = run("sh", tmp_path / "deploy.sh", *arguments, stdin=stdin, **settings)
        lines = result.stdout.replace("\\\n ", "").splitlines()
        result.printed = [line[2:].strip() for line in lines if line.startswith("$ ")]
        looks = ("python ", "uname ", "docker info", "docker buildx version")
        calls = (tmp_path / "calls").read_text().splitlines()
        result.calls = [call for call in calls if not call.startswith(looks)]
        return result

    return start


def test_a_deployment_prints_its_commands_and_how_to_go_on(deploy, bento):
    result = deploy("my-app", "--yes", curl=READY)
    assert result.returncode == 0, result.stderr
    url = "http://127.0.0.1:9/"
    commands = [
        "heroku auth:whoami",
        "heroku container:login",
        "heroku apps:info --shell --app my-app",
        CREATE,
        "heroku container:push web --app my-app",
        "heroku container:release web --app my-app",
        f"curl --silent --fail --max-time 30 --retry 1 --retry-max-time 1 --retry-delay 1"
        f" --retry-all-errors --output /dev/null {url}readyz",
        f"curl --silent --show-error --fail-with-body -X POST {url}predict"
        " -H 'Content-Type: image/*' --data-binary @photo.jpg",
    ]
    shown = [line.replace(f"(cd {bento} && ", "").rstrip(")") for line in result.printed]
    assert [" ".join(line.split()) for line in shown] == commands
    called = [command.replace("'", "") for command in commands]
    assert result.calls == [*called[:4], commands[2], *called[4:]]  # looked up again once created
    assert "my-app will be created" in result.stdout
    destroy = "heroku ps:scale web=0 --app my-app, or, for good, heroku apps:destroy --app my-app"
    log = "heroku logs --tail --app my-app"
    end = f"address:     {url}\nlog:         {log}\nstop paying: {destroy}\n"
    assert result.stdout.endswith(f'{{"label": "bees"}}\n\n{end}')


def test_an_app_that_exists_is_released_unasked_with_its_token(deploy):
    secret = {"API_TOKEN": "secret"}
    heroku = "[ $1 != apps:info ] || echo stack=container"
    result = deploy("my-app", environment=secret, curl=READY, heroku=heroku)
    assert result.returncode == 0, result.stderr
    assert "my-app exists: this release replaces what it runs" in result.stdout
    assert not [call for call in result.calls if call.startswith("heroku create")]
    assert result.calls[-1].endswith("-H Authorization: Bearer secret")
    assert "secret" not in result.stdout + result.stderr
    assert 'Bearer $API_TOKEN"' in result.printed[-1]
    assert "address:     https://my-app.herokuapp.com/\n" in result.stdout
    assert "https://my-app.herokuapp.com/predict" in result.calls[-1]


def test_a_dry_run_prints_the_commands_in_the_documentation(deploy, bento):
    documentation = (PROJECT / "docs" / "deployment.md").read_text()
    others = r"(?m)^(heroku |url=|curl ).*\n"  # commands than those that push
    for arguments, docker, left_out in (
        (("--dry-run", "my-app"), OLD_STORE, ""),
        (("my-app", "--dry-run"), OLD_STORE, ""),
        (("my-app", "--dry-run"), CONTAINERD_STORE, others),
        (("my-app", "--dry-run"), NEITHER, others),
    ):
        result = deploy(*arguments, docker=docker)
        assert (result.returncode, result.stderr, result.calls) == (0, "", [])
        text = result.stdout.replace(str(bento), "SAVED_PATH").replace("photo.jpg", "image.jpg")
        assert f"```sh\n{re.sub(left_out, '', text)}```" in documentation
    result = deploy("my-app", "--dry-run", **dict.fromkeys(TOOLS))
    assert result.returncode == 0
    assert [line.split()[1] for line in result.stderr.splitlines()] == ["heroku", "curl", "git"]


def test_each_engine_has_its_way_of_pushing(deploy):
    for machine, docker, command in (
        ("x86_64", OLD_STORE, "heroku container:push web --app my-app"),
        ("x86_64", CONTAINERD_STORE, "oci-mediatypes=false,push=true"),
        ("aarch64", OLD_STORE, "image,name=registry.heroku.com/my-app/web,oci-mediatypes=false"),
        ("arm64", OLD_STORE, "--platform linux/amd64 --provenance=false"),
        ("x86_64", NO_BUILDX, "docker push registry.heroku.com/my-app/web"),
        ("x86_64", NEITHER, GIT),
        ("x86_64", None, GIT),
    ):
        tools = {"uname": f"echo {machine}", "docker": docker}
        lines = deploy("my-app", "--dry-run", **tools).stdout
        assert command in lines
        assert ("heroku container:release web" in lines) == (command != GIT)
        there = {"HEROKU_HOST": "heroku.test"}
        elsewhere = deploy("my-app", "--dry-run", environment=there, **tools).stdout
        assert command.replace("heroku.com", "heroku.test") in elsewhere


def test_the_commands_can_be_pasted_if_paths_have_spaces_and_quotes(deploy, tmp_path):
    (folder := tmp_path / "it's a Bento").mkdir()
    (photo := tmp_path / "it's a photo.jpg").touch()
    for docker in (NO_BUILDX, CONTAINERD_STORE, NEITHER, OLD_STORE):
        tools = {"docker": docker, "python": f'echo "{folder}"'}
        result = deploy("my-app", "--dry-run", environment={"PHOTO": str(photo)}, **tools)
        words = shlex.split(result.stdout)
        assert str(folder) in {word.removesuffix("/.") for word in words}
        assert f"@{photo}" in words
    push = next(line for line in result.stdout.splitlines() if "container:push" in line)
    assert run("sh", "-c", push.replace("heroku", "pwd;:")).stdout == f"{folder}\n"


def test_the_bento_is_the_last_one_packed_or_the_last_of_a_name(deploy, tmp_path):
    python = 'echo "/bentos/$#/$*"'
    for names, count in (("app", 3), ("app wasps", 4)):
        saved = f"cd '/bentos/{count}/-m simplestack saved-path{names.removeprefix('app')}' &&"
        assert saved in deploy(*names.split(), "--dry-run", python=python).stdout
    python = f'BENTOML_HOME={tmp_path} PYTHONPATH={PROJECT} exec {sys.executable} "$@"'
    assert "make run" in error_line(deploy("my-app", python=python))  # nothing is packed


def test_the_photo_is_the_last_one_for_validation_unless_named(deploy, tmp_path):
    message = "there is no photo to predict: PHOTO=some.jpg sh deploy.sh app"
    for photo in ("", "gone.jpg"):
        result = deploy("app", "--dry-run", environment={"PHOTO": photo})
        assert message in error_line(result)
    for folder, names in (("data-sample", ["ants/0.jpg"]), ("data", ["ants/1.jpg", "bees/0.jpg"])):
        for name in (*names, "wasps/2.png"):
            (tmp_path / folder / "val" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "val" / name).touch()
        shown = deploy("app", "--dry-run", environment={"PHOTO": ""}).stdout
        assert f"@{folder}/val/{names[-1]}\n" in shown


def test_help_and_bad_names_show_the_usage(deploy):
    for arguments in (("--help",), ("my-app", "--help"), ("-h", "my-app")):
        result = deploy(*arguments)
        assert (result.returncode, result.stdout[:23]) == (0, "usage: sh deploy.sh APP")
        assert "\n  --dry-run  only print the commands\n" in result.stdout
    several = ["two", "names", "three"]
    for arguments in ([], several, ["--dry-run"], ["Capitals"], [""], ["my-app", "--what"]):
        assert "sh deploy.sh APP" in error_line(deploy(*arguments))


def test_missing_tools_are_named_before_any_call(deploy):
    for tools, message in (
        ({"heroku": None}, "heroku is missing"),
        ({"curl": None}, "curl is missing"),
        ({"docker": None, "git": None}, "git is missing: git-scm.com (or docker with buildx"),
        ({"docker": "exit 1"}, "start Docker"),
    ):
        result = deploy("my-app", **tools)
        assert (message in error_line(result), result.calls) == (True, [])
        assert deploy("my-app", "--dry-run", **tools).returncode == 0
    assert "python is missing: make run" in error_line(deploy("my-app", python=None))


def test_an_app_is_created_only_with_consent(deploy):
    result = deploy("my-app")
    assert "sh deploy.sh my-app --yes" in error_line(result)
    assert "$7 a month" in result.stdout
    assert "$ heroku create" not in result.stdout
    assert result.calls[-1] == "heroku apps:info --shell --app my-app"
    for answer, created in (("y", True), ("Yes", True), ("n", False), ("", False)):
        terminal, stdin = os.openpty()
        os.write(terminal, f"{answer}\n".encode())
        result = deploy("my-app", stdin=stdin)
        os.close(terminal)
        os.close(stdin)
        assert "Go on? [y/N]" in result.stdout
        assert (CREATE in result.printed, CREATE in result.calls) == (created, created)
        assert created or "nothing was created" in error_line(result)


def test_a_step_that_fails_is_explained_and_is_the_last(deploy):
    for step, script, message in (
        ("auth:whoami", "exit 1", "you are not logged in: heroku login"),
        ("container:login", "exit 1", "Heroku's registry rejects your login: heroku login"),
        ("apps:info", "echo stack=heroku-24; exit", "heroku stack:set container --app my-app"),
        ("create", "exit 1", "my-app can't be created: if the name is taken"),
        ("create", "exit 0", "my-app was created, but can't be read: run this again"),
        ("container:push", "exit 1", "the image wasn't built and pushed: see above"),
        ("container:release", "exit 1", "the image wasn't released: see above"),
    ):
        heroku = f"case $1 in {step}) {script} ;; esac\n{NEW_APP}"
        result = deploy("my-app", "--yes", curl=READY, heroku=heroku)
        assert message in error_line(result)
        last = "apps:info" if "can't be read" in message else step
        assert result.calls[-1].split()[:2] == ["heroku", last]
    result = deploy("my-app", "--yes", curl="case $* in *predict*) exit 22 ;; esac")
    assert "if the app has a token, API_TOKEN=... sh deploy.sh my-app" in error_line(result)
    assert "address:" not in result.stdout
    result = deploy("my-app", "--yes", log="Error R10 (Boot timeout)\n")  # is never ready
    assert "it isn't ready: see its log above" in error_line(result)
    assert "Error R10 (Boot timeout)" in result.stdout
    assert result.calls[-1] == result.printed[-1] == "heroku logs --num 20 --app my-app"
