"""The last third for real: a container engine, Heroku's rules, Heroku's CLI and a registry.

What isn't installed (`sh rehearse/install.sh`, as root on Debian) skips what needs it, by name.
"""

import http.client
import re
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

from simplestack import serving

DOCKER = PROJECT / "rehearse" / "bin" / "docker"
STATE = PROJECT / ".rehearse"
IMAGE = "resnet_heroku"
HEROKUS_RULES = (
    *("--user", "12345:0", "--read-only", "--read-only-tmpfs=false"),
    *("--tmpfs", "/tmp:rw,mode=1777", "--memory", "512m", "--memory-swap", "512m"),  # noqa: S108
)
MB = 1_000_000


def docker(*arguments: object, check: bool = True) -> str:
    result = run(DOCKER, *arguments)
    assert not check or result.returncode == 0, result.stderr
    return (result.stdout + result.stderr).strip()


@pytest.fixture(scope="session")
def engine() -> None:
    if run(DOCKER, "info").returncode != 0:
        pytest.skip("the container engine is missing: sh rehearse/install.sh")
    if run(DOCKER, "image", "exists", base()).returncode != 0:
        pytest.skip(f"the base image {base()} is missing: sh rehearse/install.sh")


def base() -> str:
    first = (PROJECT / "Dockerfile.heroku").read_text().partition("\nFROM ")[2].split()[0]
    version = ".".join(map(str, sys.version_info[:2]))
    return re.sub(r"3\.\d+", version, first)


@pytest.fixture(scope="session")
def image(bento, request) -> str:
    request.getfixturevalue("engine")
    result = run(DOCKER, "build", ".", "-t", IMAGE, cwd=bento)
    assert result.returncode == 0, result.stderr
    return IMAGE


@pytest.fixture(scope="session")
def photo(pictures) -> Path:
    return next((pictures / "val").rglob("*.jpg"))


@contextmanager
def running(image: str, *options: str, command: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Run the image under Heroku's rules; give the container's id and its URL, once it's ready."""
    port = serving.free_port()
    network = ("--network", "host", "-e", f"PORT={port}")
    container = docker("run", "--detach", *HEROKUS_RULES, *network, *options, image, *command)
    container = container.splitlines()[-1]
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(container, url)
        yield container, url
    finally:
        docker("rm", "--force", "--time", "0", container)


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
                connection.connect()
            except ConnectionRefusedError:
                outcomes["not accepted"] += 1
                return
            try:
                connection.request("POST", "/predict", body, {"Content-Type": "image/jpeg"})
                outcomes[str(connection.getresponse().status)] += 1
            except (OSError, http.client.HTTPException) as error:
                outcomes[f"lost: {error!r}"] += 1
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


def test_the_layers_on_the_base_have_at_most_280_mb(image):
    whole, below = (
        int(docker("image", "inspect", "--format", "{{.Size}}", name)) for name in (image, base())
    )
    assert whole - below <= 280 * MB


def test_it_answers_under_herokus_rules_and_is_ready_within_10_s_on_one_core(image, photo):
    began = time.monotonic()
    with running(image, "--cpus", "1") as (container, url):
        assert time.monotonic() - began <= 10
        assert serving.predict(url, photo).startswith('{"label": ')
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
        began, settled = time.monotonic(), []

        def ended() -> bool:
            seconds = time.monotonic() - began
            if seconds > 5 and not settled:
                settled.append(memory(container)[1])
            return seconds > 60

        outcomes = test_load.load(url, photo.read_bytes(), 64, ended)
        assert set(outcomes) <= {"200", "503"}, outcomes
        assert outcomes["200"] > 1000
        assert memory(container)[1] - settled[0] < 16 * MB


@pytest.mark.parametrize(("quota", "expected"), [("0.5", "1"), ("1", "1")])
def test_threads_fit_the_quota_of_the_container(image, quota, expected):
    ask = "cd src && python -c 'from simplestack.inference import cores; print(cores())'"
    answer = docker("run", "--rm", "--cpus", quota, image, "sh", "-c", ask)
    assert answer == expected


@pytest.mark.parametrize("to_all", [False, True], ids=["to_the_first", "to_all_behind_a_shell"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_under_load_loses_no_accepted_request(image, bento, photo, workers, to_all):
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
            numbers = docker("top", container, "hpid").split()[1:] if to_all else []
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
        assert set(outcomes) == {"200", "not accepted"}, outcomes


@pytest.mark.parametrize("setting", ["PORT=abc", "WEB_CONCURRENCY=x", "MAX_BYTES=-1"])
def test_a_bad_setting_stops_the_container_at_once_with_one_line(image, setting):
    result = run(DOCKER, "run", "--rm", *HEROKUS_RULES, "-e", setting, image)
    assert result.returncode == 1
    assert result.stderr.strip().startswith(f"error: {setting.partition('=')[0]}=")
    assert result.stderr.strip().count("\n") == 0


@pytest.mark.parametrize("options", [("-e", "PORT=5000"), ()], ids=["PORT=5000", "no PORT"])
def test_docker_run_serves_on_5000_as_the_tutorial_has_it(image, options):
    port = serving.free_port()
    container = docker("run", "-d", "-p", f"{port}:5000", *options, image).splitlines()[-1]
    try:
        wait_until_ready(container, f"http://127.0.0.1:{port}")
    finally:
        docker("rm", "--force", "--time", "0", container)


@pytest.mark.usefixtures("image")
def test_compose_serves_it():
    if run("podman-compose", "--version").returncode != 0:
        pytest.skip("podman-compose is missing: sh rehearse/install.sh")
    port = serving.free_port()
    options = {"PORT": str(port), "CONTAINERS_CONF": str(STATE / "containers.conf")}
    compose = ("podman-compose", "--project-name", "rehearsal", "--file", "compose.yaml")
    try:
        assert run(*compose, "up", "--detach", **options).returncode == 0
        container = docker("ps", "--quiet", "--filter", "name=rehearsal_classifier")
        wait_until_ready(container, f"http://127.0.0.1:{port}")
    finally:
        run(*compose, "down", "--timeout", "10", **options)


@pytest.fixture(scope="session")
def heroku(photo, request) -> Callable[..., subprocess.CompletedProcess]:
    """Run shell commands with a fresh Heroku on this machine around them."""
    request.getfixturevalue("image")
    for part, path in {
        "the Heroku CLI": STATE / "node_modules" / ".bin" / "heroku",
        "the registry": Path("/usr/bin/docker-registry"),
    }.items():
        if not path.exists():
            pytest.skip(f"{part} is missing: sh rehearse/install.sh")

    def rehearse(commands: str, **environment: str) -> subprocess.CompletedProcess:
        settings = {"INSTALLED": "yes", "PHOTO": str(photo), **environment}
        return run("sh", "rehearse/rehearse.sh", "sh", "-euc", commands, **settings)

    return rehearse


def test_a_deployment_can_be_repeated_and_predicts_each_time(heroku):
    result = heroku("sh deploy.sh my-app; sh deploy.sh my-app")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("$ heroku create my-app") == 1
    assert result.stdout.count('{"label": ') == 2
    assert result.stdout.count("heroku logs --tail --app my-app") == 2


def test_the_commands_by_hand_deploy_it_too(heroku, bento, photo):
    result = heroku(
        f"""cd {bento}
        heroku create by-hand --stack container --no-remote
        heroku container:login
        heroku container:push web --app by-hand
        heroku container:release web --app by-hand
        url=$(heroku apps:info --shell --app by-hand | sed -n 's/^web_url=//p')
        curl -s --retry 30 --retry-connrefused --fail -X POST "$url"predict \
            -H 'Content-Type: image/*' --data-binary @{photo}"""
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.rpartition("\n")[2].startswith('{"label": ')


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
    assert "choose another" in error_line(heroku("sh deploy.sh taken"))


def test_a_wrong_stack_is_explained(heroku):
    result = heroku("heroku create buildpacks --no-remote; sh deploy.sh buildpacks")
    assert "heroku stack:set container --app buildpacks" in error_line(result)


def test_without_a_login_the_deployment_says_so(heroku):
    result = heroku("sh deploy.sh my-app </dev/null", HEROKU_API_KEY="")
    assert "heroku login" in error_line(result)


@pytest.mark.usefixtures("bento")
def test_without_the_tools_the_deployment_says_which(photo, tmp_path):
    for name in ("sh", "dirname", "mktemp", "rm", "find", "sort", "head", "bentoml"):
        found = run("sh", "-c", f"command -v {name}").stdout.strip()
        (tmp_path / name).symlink_to(found)
    result = run("sh", "deploy.sh", "my-app", PATH=str(tmp_path), PHOTO=str(photo))
    assert "docker is missing" in error_line(result)
