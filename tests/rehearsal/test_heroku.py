"""The last third for real: Docker Engine, Heroku's rules, Heroku's CLI and a registry.

What isn't installed (`sh rehearse/install.sh`, as root on Debian) skips what needs it, by name.
"""

import http.client
import json
import os
import shlex
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import test_load
from conftest import PROJECT, command, error_line, run

from simplestack.packing import local_server

STATE = PROJECT / ".rehearse"
IMAGE = "resnet_heroku"
BASE = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
HEROKUS_RULES = (
    *("--user", "12345:0", "--read-only", "--tmpfs", "/tmp:rw,mode=1777"),  # noqa: S108
    *("--memory", "512m", "--memory-swap", "512m"),
)
MB = 1_000_000
Rehearse = Callable[..., subprocess.CompletedProcess]
around: dict[str, str] = {}
"""The environment of commands that have a Docker Engine and a Heroku around them."""


def docker(*arguments: object, check: bool = True) -> str:
    result = run("docker", *arguments, **around)
    assert not check or result.returncode == 0, result.stderr
    return (result.stdout + result.stderr).strip()


@contextmanager
def background(*command: object, **environment: str) -> Iterator[subprocess.Popen]:
    """Run a program in the background; in the end close its standard input, and wait for it."""
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=PROJECT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.communicate(timeout=60)


@pytest.fixture(scope="session")
def engine(tmp_path_factory) -> Iterator[None]:
    """The rehearsal's Docker Engine and Heroku, for as long as the tests run."""
    for part in ("engine", "node_modules/.bin/heroku"):
        if not (STATE / part).exists():
            pytest.skip(f".rehearse/{part} is missing: sh rehearse/install.sh")
    told = tmp_path_factory.mktemp("rehearsal") / "environment"
    tell = ("python", "-c", "import json, os; print(json.dumps(dict(os.environ)))")
    script = f"{shlex.join(tell)} >{told}.part; mv {told}.part {told}; cat"
    with background("sh", "rehearse/rehearse.sh", "sh", "-c", script, INSTALLED="1") as process:
        while not told.exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.1)
        around.update(json.loads(told.read_text()))
        if run("docker", "image", "inspect", BASE, **around).returncode != 0:
            pytest.skip(f"the base image {BASE} is missing: sh rehearse/install.sh")
        yield


@pytest.fixture(scope="session")
def image(bento, request) -> str:
    request.getfixturevalue("engine")
    result = run("docker", "build", ".", "-t", IMAGE, cwd=bento, **around)
    assert result.returncode == 0, result.stderr
    return IMAGE


@pytest.fixture(scope="session")
def photo(pictures) -> Path:
    return next((pictures / "val").rglob("*.jpg"))


@contextmanager
def running(image: str, *options: str, command: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Run the image under Heroku's rules; return the container's id and its URL, once ready."""
    port = local_server.free_port()
    network = ("--network", "host", "-e", f"PORT={port}")
    container = docker("run", "--detach", *HEROKUS_RULES, *network, *options, image, *command)
    container = container.splitlines()[-1]
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(container, url)
        yield container, url
    finally:
        docker("rm", "--force", container)


def wait_until_ready(container: str, url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, docker("logs", container)
            state = docker("inspect", "--format", "{{.State.Status}}", container)
            assert state == "running", docker("logs", container)
            time.sleep(0.1)


def load(url: str, photo: Path, stop: Callable[[], bool], clients: int = 8) -> Counter[str]:
    """Post a photo from several clients until it is time to stop; count what came of it."""
    outcomes: Counter[str] = Counter()
    body, port = photo.read_bytes(), int(url.rpartition(":")[2])

    def client() -> None:
        while not stop():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=40)
            try:
                connection.request("POST", "/predict", body, {"Content-Type": "image/jpeg"})
                outcomes[str(connection.getresponse().status)] += 1
            except ConnectionRefusedError:
                outcomes["refused"] += 1
                return
            except (OSError, http.client.HTTPException):
                outcomes["reset"] += 1
            finally:
                connection.close()

    test_load.at_once(client, clients)
    return outcomes


def cgroup(container: str) -> Path:
    """The folder of a container's control group that limits and counts its memory."""
    number = docker("inspect", "--format", "{{.State.Pid}}", container)
    for line in Path("/proc", number, "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory" + path)
        if not controllers and Path("/sys/fs/cgroup" + path, "memory.max").exists():
            return Path("/sys/fs/cgroup" + path)
    pytest.skip("control groups that limit memory are missing on this machine")


def memory(container: str) -> tuple[int, int]:
    """The limit, and what the container uses of it beyond what can be dropped, in bytes."""
    group = cgroup(container)
    files = ("memory.max", "memory.current", "inactive_file")
    if (group / "memory.limit_in_bytes").exists():
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limit, used = (int((group / name).read_text()) for name in files[:2])
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return limit, used - int(stat[files[2]])


def test_the_image_holds_nothing_that_serving_does_not_need(image):
    unwanted = (
        r"find / -xdev \( -name torch -o -name '*.ckpt' -o -name '*.jpg' -o -name 'gcc*'"
        r" -o -name cc -o -name git -o -path '*/.cache/*' -o -name 'libtorch*' \)"
        r" -not -path '/proc/*' -not -path '/usr/share/*' -not -path '/usr/lib/gcc*'"
        r" -not -path '/var/lib/dpkg/*' -not -name 'gcc-*-base*'"
    )
    assert docker("run", "--rm", "--user", "0", image, "sh", "-c", unwanted) == ""


def test_the_layers_on_the_base_have_at_most_240_mb(image):
    whole, below = (
        int(docker("run", "--rm", "--user", "0", name, "du", "-xsm", "/").split()[0])
        for name in (image, BASE)
    )
    assert whole - below <= 240


def test_it_answers_under_herokus_rules_and_is_ready_within_10_s_on_one_core(image, photo):
    began = time.monotonic()
    with running(image, "--cpus", "1") as (container, url):
        assert time.monotonic() - began <= 10
        assert local_server.predict(url, photo).startswith('{"label": ')
        assert docker("exec", container, "id", "-u") == "12345"


@pytest.mark.parametrize(("workers", "most"), [(1, 256), (2, 400)])
def test_memory_stays_within_a_dyno_idle_and_under_load(image, photo, workers, most):
    with running(image, "-e", f"WEB_CONCURRENCY={workers}") as (container, url):
        limit, idle = memory(container)
        assert limit == 512 * 1024 * 1024
        end = time.monotonic() + 8
        assert set(load(url, photo, lambda: time.monotonic() > end)) == {"200"}
        assert idle <= most * MB
        assert memory(container)[1] <= most * MB


def test_64_connections_for_a_minute_get_answers_or_honest_refusals(image, photo):
    with running(image, "-e", "WEB_CONCURRENCY=2") as (container, url):
        began = time.monotonic()
        body = photo.read_bytes()
        outcomes = test_load.load(url, body, 64, lambda: time.monotonic() > began + 60)
        assert set(outcomes) <= {"200", "503"}, outcomes
        assert outcomes["200"] > 1000
        # It grows until each thread of both workers has been at work, to 403 MB, and no further.
        assert memory(container)[1] < 450 * MB


@pytest.mark.parametrize(("quota", "expected"), [("0.5", "1"), ("1", "1")])
def test_threads_fit_the_quota_of_the_container(image, quota, expected):
    ask = "cd src && python -c 'from simplestack.serving.inference import cores; print(cores())'"
    answer = docker("run", "--rm", "--cpus", quota, image, "sh", "-c", ask)
    assert answer == expected


@pytest.mark.parametrize("to_all", [False, True], ids=["to_the_first", "to_all_behind_a_shell"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_under_load_leaves_no_request_that_has_begun_unanswered(
    image, bento, photo, workers, to_all
):
    without_exec = command(bento).replace("exec ", "")
    behind_a_shell = ("sh", "-c", f"{without_exec}; exit $?") if to_all else ()
    with running(image, "-e", f"WEB_CONCURRENCY={workers}", command=behind_a_shell) as (
        container,
        url,
    ):
        ended: list[float] = []

        def terminate() -> None:
            time.sleep(2)
            began = time.monotonic()
            numbers = docker("top", container, "-o", "pid").split()[1:] if to_all else []
            if to_all:
                subprocess.run(["kill", "-TERM", *numbers], check=True)
            else:
                docker("kill", "--signal", "TERM", container)
            assert docker("wait", container) == "0"
            ended.append(time.monotonic() - began)

        killer = threading.Thread(target=terminate)
        killer.start()
        outcomes = load(url, photo, lambda: bool(ended))
        killer.join()
        assert ended
        assert ended[0] <= 10
        begun = [json.loads(line) for line in docker("logs", container).splitlines()]
        statuses = Counter(str(record["status"]) for record in begun if "status" in record)
        assert statuses == {"200": outcomes["200"]}, outcomes
        assert set(outcomes) <= {"200", "refused", "reset"}, outcomes


@pytest.mark.parametrize("setting", ["PORT=abc", "WEB_CONCURRENCY=x", "MAX_BYTES=-1"])
def test_a_bad_setting_stops_the_container_at_once_with_one_line(image, setting):
    result = run("docker", "run", "--rm", *HEROKUS_RULES, "-e", setting, image, **around)
    assert result.returncode == 1
    assert result.stderr.strip().startswith(f"error: {setting.partition('=')[0]}=")
    assert result.stderr.strip().count("\n") == 0


@pytest.mark.parametrize("options", [("-e", "PORT=5000"), ()], ids=["PORT=5000", "no PORT"])
def test_docker_run_serves_on_5000_as_the_tutorial_has_it(image, options):
    port = local_server.free_port()
    container = docker("run", "-d", "-p", f"{port}:5000", *options, image).splitlines()[-1]
    try:
        wait_until_ready(container, f"http://127.0.0.1:{port}")
    finally:
        docker("rm", "--force", container)


@pytest.mark.usefixtures("image")
def test_compose_serves_it():
    port = local_server.free_port()
    compose = ("docker", "compose", "--project-name", "rehearsal", "--file", "compose.yaml")
    options = {**around, "PORT": str(port)}
    try:
        result = run(*compose, "up", "--detach", **options)
        assert result.returncode == 0, result.stderr
        container = docker("ps", "--quiet", "--filter", "name=rehearsal-classifier")
        wait_until_ready(container, f"http://127.0.0.1:{port}")
    finally:
        run(*compose, "down", **options)


READ_ONLY = ("--read-only", "--tmpfs", "/tmp:rw,mode=1777")  # noqa: S108
UNPRIVILEGED = ("--cap-drop", "ALL", "--security-opt", "no-new-privileges")


# As docs/deployment.md sets each of them up: where it listens, as whom, in how much memory, and how
# it is stopped, with how many seconds to do so.
@pytest.mark.parametrize(
    ("options", "port", "stop"),
    [
        pytest.param(("-e", "PORT=31415", "-u", "12345:0"), 31415, ("TERM", 30), id="heroku"),
        pytest.param(("-e", "PORT=8080"), 8080, ("TERM", 10), id="cloud run"),
        pytest.param(("-e", "PORT=10000"), 10000, ("TERM", 30), id="render"),
        pytest.param(("-e", "PORT=5000"), 5000, ("TERM", 10), id="railway"),
        pytest.param(("-u", "0:0"), 5000, ("TERM", 10), id="fly"),
        pytest.param(("-u", "0:0"), 5000, ("INT", 5), id="fly without kill_signal"),
        pytest.param(("-u", "1000:1000"), 5000, ("TERM", 10), id="space"),
        pytest.param(("-u", "12345:0", *READ_ONLY), 5000, ("TERM", 30), id="compose"),
        pytest.param(
            ("-e", "PORT=5000", "-u", "12345", *READ_ONLY, *UNPRIVILEGED),
            *(5000, ("TERM", 30)),
            id="kubernetes",
        ),
    ],
)
def test_the_image_keeps_the_rules_of_each_host(image, photo, options, port, stop):
    published = local_server.free_port()
    container = docker(
        *("run", "--detach", "--publish", f"127.0.0.1:{published}:{port}"),
        *("--memory", "512m", "--memory-swap", "512m", *options, image),
    )
    try:
        url = f"http://127.0.0.1:{published}"
        wait_until_ready(container, url)
        assert local_server.predict(url, photo).startswith('{"label": ')
        began, (signal, seconds) = time.monotonic(), stop
        docker("kill", "--signal", signal, container)
        assert docker("wait", container) == "0"
        assert time.monotonic() - began <= seconds
    finally:
        docker("rm", "--force", container)


@pytest.fixture(scope="session")
def heroku(photo, request) -> Rehearse:
    """Run shell commands with that Heroku around them."""
    request.getfixturevalue("image")

    def rehearse(commands: str, **environment: str) -> subprocess.CompletedProcess:
        return run("sh", "-euc", commands, **around | {"PHOTO": str(photo)} | environment)

    return rehearse


def on_the_path(folder: Path, **scripts: str) -> str:
    """Put commands before all others on the PATH."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{around['PATH']}"


def builds_oci_images(folder: Path) -> str:
    """A PATH with a Docker that builds what BuildKit does by itself since 0.31."""
    options = "--output type=image,oci-mediatypes=true"
    script = f'[ "$1" != build ] || set -- "$@" {options}\nexec {STATE}/engine/usr/bin/docker "$@"'
    return on_the_path(folder, docker=script)


def deploys(result: subprocess.CompletedProcess) -> bool:
    assert result.returncode == 0, result.stdout + result.stderr
    return '{"label": ' in result.stdout


def test_todays_docker_is_refused_by_herokus_registry(heroku, bento, tmp_path):
    result = heroku(
        f"""heroku create refused --stack container --no-remote
        heroku container:login
        cd {bento}
        heroku container:push web --app refused""",
        PATH=builds_oci_images(tmp_path),
    )
    assert result.returncode != 0
    assert "405 Method Not Allowed" in result.stderr
    assert "docker push exited with" in result.stderr


def test_the_registry_refuses_with_the_word_that_herokus_uses(heroku):
    kind = "application/vnd.oci.image.manifest.v1+json"
    url = f"https://registry.{around['HEROKU_HOST']}/v2/any/web/manifests/latest"
    result = heroku(
        f"curl -s --cacert $STATE/ca.crt -u _:rehearsal -X PUT -H 'Content-Type: {kind}' {url}"
    )
    assert json.loads(result.stdout)["errors"][0]["code"] == "UNSUPPORTED"


def test_deploy_gets_through_with_todays_docker(heroku, tmp_path):
    result = heroku("sh deploy.sh todays --yes", PATH=builds_oci_images(tmp_path))
    assert deploys(result)


def test_a_deployment_can_be_repeated_and_predicts_each_time(heroku):
    result = heroku("sh deploy.sh my-app --yes; sh deploy.sh my-app")
    assert deploys(result)
    assert result.stdout.count("$ heroku create my-app") == 1
    assert result.stdout.count('{"label": ') == 2
    assert result.stdout.count("heroku ps:scale web=0 --app my-app") == 2


@pytest.fixture(scope="module")
def older_store(request) -> Iterator[str]:
    """The address of a Docker Engine with the image store from before the containerd store."""
    request.getfixturevalue("engine")
    address = "unix:///run/rehearsal-classic/docker.sock"
    with background("sh", "rehearse/engine.sh", "classic", **around) as process:
        while run(
            "docker", "image", "inspect", BASE, **around | {"DOCKER_HOST": address}
        ).returncode:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.2)
        yield address
        process.terminate()


def test_deploy_gets_through_with_the_older_image_store(heroku, older_store):
    result = heroku("sh deploy.sh older --yes", DOCKER_HOST=older_store)
    assert "heroku container:push web --app older" in result.stdout
    assert deploys(result)


def on_arm(folder: Path) -> dict[str, str]:
    """An environment in which nothing is built for amd64 unless it is named."""
    path = on_the_path(folder, uname="echo arm64")
    return {"PATH": path, "DOCKER_DEFAULT_PLATFORM": "linux/arm64"}


def test_deploy_gets_through_on_arm(heroku, tmp_path):
    assert deploys(heroku("sh deploy.sh on-arm --yes", **on_arm(tmp_path)))


def test_deploy_gets_through_on_arm_with_the_older_image_store(heroku, older_store, tmp_path):
    environment = {**on_arm(tmp_path), "DOCKER_HOST": older_store}
    assert deploys(heroku("sh deploy.sh on-older-arm --yes", **environment))


@pytest.fixture
def no_buildx(tmp_path) -> dict[str, str]:
    """The environment of a Docker that has no buildx."""
    config = json.loads((STATE / "docker" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"cliPluginsExtraDirs": []}))
    return {"DOCKER_CONFIG": str(tmp_path)}


def test_deploy_gets_through_without_buildx(heroku, no_buildx, older_store):
    result = heroku("sh deploy.sh no-buildx --yes", **no_buildx, DOCKER_HOST=older_store)
    assert "$ docker build --platform linux/amd64" in result.stdout
    assert deploys(result)


def test_deploy_gets_through_without_buildx_from_the_containerd_store(heroku, no_buildx):
    result = heroku("sh deploy.sh heroku-builds --yes", **no_buildx)
    assert "push --force https://git" in result.stdout
    assert deploys(result)


def test_deploy_gets_through_without_docker(heroku, bento, tmp_path):
    for folder in around["PATH"].split(":"):
        for program in Path(folder).glob("*"):
            if program.name != "docker" and not (tmp_path / program.name).exists():
                (tmp_path / program.name).symlink_to(program.absolute())
    result = heroku("sh deploy.sh no-docker --yes; sh deploy.sh no-docker", PATH=str(tmp_path))
    assert deploys(result)
    assert result.stdout.count('{"label": ') == 2
    assert not (bento / ".git").exists()


def test_the_commands_of_a_dry_run_deploy_it_too(heroku):
    result = heroku('eval "$(sh deploy.sh by-hand --dry-run)"')
    assert deploys(result)


def test_a_token_protects_a_deployed_app(heroku):
    result = heroku(
        """heroku create private --stack container --no-remote
        heroku config:set API_TOKEN=secret --app private
        API_TOKEN=secret sh deploy.sh private
        sh deploy.sh private"""
    )
    assert result.stdout.count('{"label": ') == 1
    assert "API_TOKEN=... sh deploy.sh private" in result.stderr


def test_an_app_that_crashes_is_explained_from_its_log(heroku):
    result = heroku(
        """heroku create crashing --stack container --no-remote
        heroku config:set MAX_BYTES=nonsense --app crashing
        READY_WITHIN=3 sh deploy.sh crashing"""
    )
    assert "error: it crashed (H10)" in result.stderr
    assert "error: MAX_BYTES='nonsense'" in result.stderr


def test_somebody_elses_name_is_refused(heroku):
    assert "choose another" in error_line(heroku("sh deploy.sh taken --yes"))


def test_a_wrong_stack_is_explained(heroku):
    result = heroku("heroku create buildpacks --no-remote; sh deploy.sh buildpacks")
    assert "heroku stack:set container --app buildpacks" in error_line(result)


@pytest.mark.parametrize("key", ["", "wrong"])
def test_without_a_login_the_deployment_says_so(heroku, key):
    result = heroku("sh deploy.sh my-app </dev/null", HEROKU_API_KEY=key)
    assert "heroku login" in error_line(result)
