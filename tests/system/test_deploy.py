"""deploy.sh, against commands that say what Heroku's and Docker's would."""

import os
import shlex
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
TOOLS = {"heroku": NEW_APP, "curl": "exit 1", "git": "true", "docker": OLD_STORE}
WITHOUT_DOCKER = {name: script for name, script in TOOLS.items() if name != "docker"}
READY = {**TOOLS, "curl": """case $* in *predict*) echo '{"label": "bees"}' ;; esac"""}
DOCUMENTATION = (PROJECT / "docs" / "deployment.md").read_text()


@pytest.fixture
def deploy(bento, pictures, tmp_path):
    """Run a copy of deploy.sh that finds no commands but a shell's own and those given, which
    write their arguments to the file `calls`.
    """
    (tmp_path / "photo.jpg").symlink_to(next((pictures / "val").rglob("*.jpg")))
    shutil.copy(PROJECT / "deploy.sh", tmp_path)
    (tmp_path / "tmp").mkdir()
    for name in (*SHELL, "tail", "tee", "touch", "tr"):
        (tmp_path / name).symlink_to(shutil.which(name))

    def start(
        *arguments: str,
        log: str = "",
        stdin=subprocess.DEVNULL,
        environment: dict[str, str] | None = None,
        **scripts: str,
    ) -> subprocess.CompletedProcess:
        (tmp_path / "log").write_text(log)
        (tmp_path / "calls").write_text("")
        for name in (*TOOLS, "heroku.made"):
            (tmp_path / name).unlink(missing_ok=True)
        usual = {"python": f"echo {bento}", "uname": "echo x86_64"}
        for name, script in {**usual, **scripts}.items():
            note = 'echo "${0##*/} $*" >>"${0%/*}/calls"'
            (tmp_path / name).write_text(f"#!/bin/sh\n{note}\n{script}\n")
            (tmp_path / name).chmod(0o755)
        settings = {"PHOTO": "photo.jpg", "PATH": str(tmp_path), "READY_WITHIN": "1"}
        settings |= {"API_TOKEN": "", "TMPDIR": str(tmp_path / "tmp"), **(environment or {})}
        result = run("sh", tmp_path / "deploy.sh", *arguments, stdin=stdin, **settings)
        assert not list((tmp_path / "tmp").iterdir())
        return result

    return start


@pytest.fixture
def calls(tmp_path):
    """What was called by the last run, without what only looks."""
    looks = ("python ", "uname ", "docker info", "docker buildx version")

    def calls() -> list[str]:
        lines = (tmp_path / "calls").read_text().splitlines()
        return [line for line in lines if not line.startswith(looks)]

    return calls


def printed(result: subprocess.CompletedProcess) -> list[str]:
    """The commands that were printed before they ran."""
    text = result.stdout.replace("\\\n ", "")
    return [line[2:].strip() for line in text.splitlines() if line.startswith("$ ")]


def test_a_deployment_prints_what_it_does_and_how_to_go_on(deploy, bento, calls):
    result = deploy("my-app", "--yes", **READY)
    assert result.returncode == 0, result.stderr
    url = "http://127.0.0.1:9/"
    commands = [
        "heroku auth:whoami",
        "heroku container:login",
        "heroku apps:info --shell --app my-app",
        "heroku create my-app --stack container --no-remote",
        "heroku container:push web --app my-app",
        "heroku container:release web --app my-app",
        "curl --silent --fail --max-time 30 --retry 1 --retry-max-time 1 --retry-delay 1"
        f" --retry-all-errors --output /dev/null {url}readyz",
        f"curl --silent --show-error --fail-with-body -X POST {url}predict"
        " -H 'Content-Type: image/*' --data-binary @photo.jpg",
    ]
    shown = [line.replace(f"(cd {bento} && ", "").rstrip(")") for line in printed(result)]
    assert [" ".join(line.split()) for line in shown] == commands
    called = [command.replace("'", "") for command in commands]
    assert calls() == [*called[:4], commands[2], *called[4:]]  # looked up again once created
    assert "my-app will be created" in result.stdout
    assert result.stdout.endswith(
        f"""{{"label": "bees"}}

address:     {url}
log:         heroku logs --tail --app my-app
stop paying: heroku ps:scale web=0 --app my-app, or, for good, heroku apps:destroy --app my-app
"""
    )


def test_an_app_that_exists_is_released_unasked_with_its_token(deploy, calls):
    secret = {"API_TOKEN": "secret"}
    heroku = "[ $1 != apps:info ] || echo stack=container"
    result = deploy("my-app", environment=secret, **{**READY, "heroku": heroku})
    assert result.returncode == 0, result.stderr
    assert "my-app exists: this release replaces what it runs" in result.stdout
    assert not [call for call in calls() if call.startswith("heroku create")]
    assert calls()[-1].endswith("-H Authorization: Bearer secret")
    assert "secret" not in result.stdout + result.stderr
    assert 'Bearer $API_TOKEN"' in printed(result)[-1]
    assert "address:     https://my-app.herokuapp.com/\n" in result.stdout
    assert "https://my-app.herokuapp.com/predict" in calls()[-1]


def test_a_dry_run_prints_the_commands_in_the_documentation(deploy, bento, calls, subtests):
    def block(lines: list[str]) -> str:
        text = "\n".join(lines).replace(str(bento), "SAVED_PATH")
        return f"```sh\n{text.replace('photo.jpg', 'image.jpg')}```"

    for arguments in (("--dry-run", "my-app"), ("my-app", "--dry-run")):
        with subtests.test(arguments=arguments):
            result = deploy(*arguments, **TOOLS)
            assert (result.returncode, result.stderr) == (0, "")
            assert block(result.stdout.split("\n")) in DOCUMENTATION
            assert calls() == []
    for docker in (CONTAINERD_STORE, CONTAINERD_STORE_WITHOUT_BUILDX):
        with subtests.test(docker=docker):
            lines = deploy("my-app", "--dry-run", **{**TOOLS, "docker": docker}).stdout.split("\n")
            push = [x for x in lines if not x.startswith(("heroku ", "url=", "curl "))]
            assert block(push) in DOCUMENTATION


def test_each_engine_has_its_way_of_pushing(deploy, subtests):
    arm = {**TOOLS, "uname": "echo aarch64"}
    for name, tools, command in (
        ("old store", TOOLS, "heroku container:push web --app my-app"),
        ("containerd", {**TOOLS, "docker": CONTAINERD_STORE}, "oci-mediatypes=false,push=true"),
        ("aarch64", arm, "image,name=registry.heroku.com/my-app/web,oci-mediatypes=false"),
        ("arm64", {**arm, "uname": "echo arm64"}, "--platform linux/amd64 --provenance=false"),
        ("no buildx", {**TOOLS, "docker": NO_BUILDX}, "docker push registry.heroku.com/my-app/web"),
        (
            "containerd without buildx",
            {**TOOLS, "docker": CONTAINERD_STORE_WITHOUT_BUILDX},
            "push --force https://git.heroku.com/my-app.git",
        ),
        ("no docker", WITHOUT_DOCKER, "push --force https://git.heroku.com/my-app.git"),
    ):
        with subtests.test(name):
            lines = deploy("my-app", "--dry-run", **tools).stdout
            assert command in lines
            assert ("heroku container:release web" in lines) == ("--force" not in command)
            elsewhere = command.replace("heroku.com", "heroku.test")
            there = {"HEROKU_HOST": "heroku.test"}
            assert elsewhere in deploy("my-app", "--dry-run", environment=there, **tools).stdout


def test_a_dry_run_names_the_tools_that_are_missing(deploy):
    result = deploy("my-app", "--dry-run")
    assert result.returncode == 0
    assert [line.split()[1] for line in result.stderr.splitlines()] == ["heroku", "curl", "git"]


def test_help_is_printed_before_and_after_the_name(deploy, subtests):
    for arguments in (("--help",), ("my-app", "--help"), ("-h", "my-app")):
        with subtests.test(arguments=arguments):
            result = deploy(*arguments)
            assert result.returncode == 0
            assert result.stdout.startswith("usage: sh deploy.sh APP")
            assert "\n  --dry-run  only print the commands\n" in result.stdout


def test_the_commands_can_be_pasted_if_paths_have_spaces_and_quotes(deploy, tmp_path, subtests):
    folder = tmp_path / "it's a Bento"
    folder.mkdir()
    photo = tmp_path / "it's a photo.jpg"
    photo.touch()
    for docker in (OLD_STORE, CONTAINERD_STORE, NO_BUILDX, CONTAINERD_STORE_WITHOUT_BUILDX):
        with subtests.test(docker=docker):
            tools = {**TOOLS, "docker": docker, "python": f'echo "{folder}"'}
            result = deploy("my-app", "--dry-run", environment={"PHOTO": str(photo)}, **tools)
            words = shlex.split(result.stdout)
            assert str(folder) in {word.removesuffix("/.") for word in words}
            assert f"@{photo}" in words
    lines = deploy("my-app", "--dry-run", **{**tools, "docker": OLD_STORE}).stdout.splitlines()
    push = next(line for line in lines if "container:push" in line)
    assert run("sh", "-c", push.replace("heroku", "pwd;:")).stdout == f"{folder}\n"


def test_the_bento_is_the_last_one_packed_or_the_last_of_a_name(deploy):
    tools = {**TOOLS, "python": 'echo "/bentos/$#/$*"'}
    assert (
        "cd '/bentos/3/-m simplestack saved-path' &&" in deploy("app", "--dry-run", **tools).stdout
    )
    named = deploy("app", "wasps", "--dry-run", **tools).stdout
    assert "cd '/bentos/4/-m simplestack saved-path wasps' &&" in named


def test_the_photo_is_the_last_one_for_validation_unless_named(deploy, tmp_path):
    usual = {"environment": {"PHOTO": ""}, **TOOLS}
    message = "there is no photo to predict: PHOTO=some.jpg sh deploy.sh app"
    assert message in error_line(deploy("app", "--dry-run", **usual))
    for folder, names in (("data-sample", ["ants/0.jpg"]), ("data", ["ants/1.jpg", "bees/0.jpg"])):
        for name in (*names, "wasps/2.png"):
            (tmp_path / folder / "val" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "val" / name).touch()
        assert f"@{folder}/val/{names[-1]}\n" in deploy("app", "--dry-run", **usual).stdout
    gone = {"environment": {"PHOTO": "gone.jpg"}}
    assert message in error_line(deploy("app", "--dry-run", **gone, **TOOLS))


def test_a_deployment_without_a_good_name_says_how(deploy, subtests):
    several = ["two", "names", "three"]
    for arguments in ([], several, ["--dry-run"], ["Capitals"], [""], ["my-app", "--what"]):
        with subtests.test(arguments=arguments):
            assert "sh deploy.sh APP" in error_line(deploy(*arguments))


def test_a_deployment_without_anything_packed_says_what_to_do(deploy, tmp_path):
    python = f'BENTOML_HOME={tmp_path} PYTHONPATH={PROJECT} exec {sys.executable} "$@"'
    assert "make run" in error_line(deploy("my-app", python=python))


def test_what_is_missing_is_named_before_anything_is_done(deploy, calls, tmp_path, subtests):
    for left_out, message in (
        ("heroku", "heroku is missing"),
        ("curl", "curl is missing"),
        ("docker git", "git is missing: git-scm.com (or docker with buildx"),
    ):
        with subtests.test(left_out):
            tools = {name: script for name, script in TOOLS.items() if name not in left_out}
            assert message in error_line(deploy("my-app", **tools))
            assert calls() == []
    no_engine = {**TOOLS, "docker": NO_ENGINE}
    assert "start Docker" in error_line(deploy("my-app", **no_engine))
    assert calls() == []
    assert deploy("my-app", "--dry-run", **no_engine).returncode == 0
    (tmp_path / "python").unlink()
    script = tmp_path / "deploy.sh"
    assert "python is missing: make run" in error_line(run("sh", script, "a", PATH=str(tmp_path)))


def test_without_a_terminal_nothing_is_created_unasked(deploy, calls):
    result = deploy("my-app", **TOOLS)
    assert "sh deploy.sh my-app --yes" in error_line(result)
    assert "$7 a month" in result.stdout
    assert "$ heroku create" not in result.stdout
    assert calls()[-1] == "heroku apps:info --shell --app my-app"


def test_on_a_terminal_it_asks_before_it_creates(deploy, calls, subtests):
    for answer, created in (("y", True), ("Yes", True), ("n", False), ("", False)):
        with subtests.test(answer=answer):
            terminal, stdin = os.openpty()
            os.write(terminal, f"{answer}\n".encode())
            result = deploy("my-app", stdin=stdin, **TOOLS)
            os.close(terminal)
            os.close(stdin)
            create = "heroku create my-app --stack container --no-remote"
            assert "Go on? [y/N]" in result.stdout
            assert (create in printed(result)) == created
            assert (create in calls()) == created
            assert created or "nothing was created" in error_line(result)


def test_a_step_that_fails_is_explained_and_is_the_last(deploy, calls, subtests):
    stack = "my-app has the stack heroku-24, not container: heroku stack:set container --app my-app"
    for step, script, message in (
        ("auth:whoami", "exit 1", "you are not logged in: heroku login"),
        ("container:login", "exit 1", "Heroku's registry rejects your login: heroku login"),
        ("apps:info", "echo no access; exit 1", "my-app can't be used: if it isn't yours"),
        ("apps:info", "echo stack=heroku-24; exit", stack),
        ("create", "exit 1", "my-app can't be created: if the name is taken"),
        ("create", "exit 0", "my-app was created, but can't be read: run this again"),
        ("container:push", "exit 1", "the image wasn't built and pushed: see above"),
        ("container:release", "exit 1", "the image wasn't released: see above"),
    ):
        with subtests.test(step, script=script):
            heroku = f"case $1 in {step}) {script} ;; esac\n{NEW_APP}"
            result = deploy("my-app", "--yes", **{**READY, "heroku": heroku})
            assert message in error_line(result)
            last = "apps:info" if "can't be read" in message else step
            assert calls()[-1].startswith(f"heroku {last} ") or calls()[-1] == f"heroku {last}"
            assert ("no access" in result.stderr) == ("no access" in script)
    curl = "case $* in *predict*) exit 22 ;; esac"
    result = deploy("my-app", "--yes", **{**READY, "curl": curl})
    message = "no prediction: if the app has a token, API_TOKEN=... sh deploy.sh my-app"
    assert message in error_line(result)
    assert "address:" not in result.stdout


# As devcenter.heroku.com/articles/error-codes has them.
def test_what_the_log_says_of_a_failure_is_explained(deploy, calls, subtests):
    for log, remedy in (
        (
            "heroku[web.1]: Error R10 (Boot timeout) -> Web process failed to bind to $PORT within"
            " 60 seconds of launch",
            "docker run -p 5000:5000 -e PORT=5000 registry.heroku.com/my-app/web",
        ),
        ("heroku[web.1]: Error R14 (Memory quota exceeded)", "WEB_CONCURRENCY=1 --app my-app"),
        ("heroku[web.1]: Error R15 (Memory quota vastly exceeded)", "heroku ps:resize"),
        ('heroku[router]: at=error code=H10 desc="App crashed" method=GET', "heroku config"),
        ("heroku[web.1]: State changed from starting to up", "heroku ps --app my-app"),
    ):
        with subtests.test(log):
            result = deploy("my-app", "--yes", log=log, **TOOLS)
            assert remedy in error_line(result)
            assert log in result.stderr
            assert calls()[-1] == "heroku logs --num 200 --app my-app"
            assert calls()[-1] == printed(result)[-1]


def test_what_a_failed_push_says_is_explained(deploy, calls, subtests):
    for output, remedy in (
        ("unsupported", "docs/deployment.md"),
        ("unexpected status from PUT request: 405 Method Not Allowed", "docs/deployment.md"),
        ("manifest invalid: manifest invalid", "docs/deployment.md"),
        ("blob unknown: blob unknown to registry", "docs/deployment.md"),
        ("write /var/lib/docker/tmp: no space left on device", "docker system prune"),
        ("exec /bin/sh: exec format error", "QEMU"),
        ("unauthorized: authentication required", "heroku login"),
        ("denied: requested access to the resource is denied", "heroku login"),
        ("something else", "see above"),
    ):
        with subtests.test(output):
            build = f"[ $2 = version ] || {{ echo '{output}' >&2; exit 1; }}"
            docker = f"case $1 in info) {CONTAINERD_STORE} ;; buildx) {build} ;; esac"
            result = deploy("my-app", "--yes", **{**TOOLS, "docker": docker})
            assert remedy in error_line(result)
            assert output in result.stdout
            assert "container:release" not in result.stdout
            assert calls()[-1].startswith("docker buildx build --platform linux/amd64")
