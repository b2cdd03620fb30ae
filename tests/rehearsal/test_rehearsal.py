"""The image in a real Docker Engine, by Heroku's rules and by those of other hosts; and deploy.sh.

What isn't installed (`sh tests/rehearsal/install.sh`, as root on Debian) skips what needs it. All
of it is one file, as a file goes to one process, and only one at a time can have the engine.
"""

import itertools
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import hostile
import numpy as np
import pytest
import requests
import taken_over
from helpers import container_command, error_line, get, load, post, run, wait_until_ready
from rehearsal.containers import (
    BASE,
    MB,
    STATE,
    Container,
    background,
    docker,
    dyno,
    on_the_path,
    rehearsal,
    running,
)

from simplestack.packing import local_server


def test_the_image_holds_only_files_that_serving_needs_in_262_mb_above_the_base(image):
    unwanted = (
        r"find / -xdev \( -name torch -o -name '*.ckpt' -o -name '*.jpg' -o -name 'gcc*'"
        r" -o -name cc -o -name git -o -path '*/.cache/*' -o -name 'libtorch*' \)"
        r" -not -path '/proc/*' -not -path '/usr/share/*' -not -path '/usr/lib/gcc*'"
        r" -not -path '/var/lib/dpkg/*' -not -name 'gcc-*-base*'"
    )
    assert docker("run", "--rm", "--user", "0", image, "sh", "-c", unwanted) == ""
    whole, below = (
        int(docker("run", "--rm", "--user", "0", name, "du", "-xsm", "/").split()[0])
        for name in (image, BASE)
    )
    assert whole - below <= 262


def test_on_one_core_it_is_ready_within_10_s_and_keeps_herokus_rules(image, photo):
    began = time.monotonic()
    with dyno(image, "--cpus", "1") as container:
        assert time.monotonic() - began <= 10
        assert local_server.predict(container.url, photo).startswith('{"label": ')
        assert docker("exec", container.id, "id", "-u") == "23456"  # the user of Heroku's choice
        ask = "from simplestack.serving.cgroup import cores; print(cores())"
        program = f'cd src && python -c "{ask}"'
        assert docker("exec", container.id, "sh", "-c", program) == "1"


@pytest.mark.parametrize(("workers", "most"), [(1, 256), (2, 400)])
def test_memory_stays_within_a_dyno_idle_and_under_load(image, photo, workers, most):
    with dyno(image, "--env", f"WEB_CONCURRENCY={workers}") as container:
        limit, idle = container.memory()
        assert limit == 512 * 2**20
        end = time.monotonic() + 8
        outcomes = load(container.url, photo.read_bytes(), 8, lambda: time.monotonic() > end)
        assert set(outcomes) == {"200"}
        assert idle <= most * MB
        assert container.memory()[1] <= most * MB


def test_64_connections_for_a_minute_get_answers_or_honest_refusals_and_leak_nothing(image, photo):
    outcomes, memory, end = Counter(), [], time.monotonic() + 60
    with dyno(image, "--env", "WEB_CONCURRENCY=2") as container:
        while time.monotonic() < end or outcomes.total() < 6000:  # on a slow machine, for longer
            sent = itertools.count()
            outcomes += load(container.url, photo.read_bytes(), 64, lambda n=sent: next(n) >= 500)
            memory.append(container.memory()[1])
    assert set(outcomes) <= {"200", "503"}, outcomes
    assert outcomes["200"] > 1000
    assert max(memory) < 450 * MB
    assert memory[-1] - memory[5] <= 16 * 2**20  # since 3,000 answers


NOT_BEGUN = {
    *("BrokenPipeError", "ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected")
}


def stop_under_load(image: str, body: bytes, workers: str, command: tuple[str, ...]) -> tuple:
    """Send SIGTERM to a container under load, and to all behind the shell if that is the first."""
    with dyno(image, "--env", f"WEB_CONCURRENCY={workers}", command=command) as container:
        done = threading.Event()

        def terminate() -> tuple[str, float]:
            time.sleep(2)
            began = time.monotonic()
            if command:
                pids = docker("top", container.id, "-o", "pid").split()[1:]
                subprocess.run(["kill", "-TERM", *pids], check=True)
            else:
                docker("kill", "--signal", "TERM", container.id)
            exit_code = docker("wait", container.id)
            done.set()
            return exit_code, time.monotonic() - began

        with ThreadPoolExecutor(1) as pool:
            end = pool.submit(terminate)
            outcomes = load(container.url, body, 8, done.is_set, keep_alive=False)
        return *end.result(), outcomes, docker("logs", container.id)


@pytest.fixture(scope="module")
def stopped(image, bento, photo):
    without_exec = container_command(bento).replace("exec ", "")
    commands = {False: (), True: ("sh", "-c", f"{without_exec}; exit $?")}
    with ThreadPoolExecutor(4) as pool:
        start = partial(pool.submit, stop_under_load, image, photo.read_bytes())
        kinds = itertools.product(("1", "2"), commands)  # all at once
        yield {(workers, shell): start(workers, commands[shell]) for workers, shell in kinds}


@pytest.mark.parametrize("to_all", [False, True], ids=["to_the_first", "to_all_behind_a_shell"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_under_load_leaves_no_request_that_has_begun_unanswered(stopped, workers, to_all):
    exit_code, seconds, outcomes, log = stopped[workers, to_all].result()
    assert exit_code == "0"
    assert seconds <= 10
    records = [json.loads(line) for line in log.splitlines()]
    statuses = Counter(str(record["status"]) for record in records if "status" in record)
    assert statuses == {"200": outcomes["200"]}, outcomes
    assert set(outcomes) <= {"200", *NOT_BEGUN}, outcomes


@pytest.mark.parametrize(("workers", "size"), [(1, "2m"), (2, "16m")])
def test_a_full_disk_costs_no_client_an_answer(image, photo, workers, size):
    port = local_server.free_port()
    small = ("--read-only", "--tmpfs", f"/tmp:size={size}")  # noqa: S108
    options = (*small, "--env", f"WEB_CONCURRENCY={workers}", "--publish", f"{port}:5000")
    with running(*options, image, port=port) as container:
        docker("exec", container.id, "sh", "-c", "dd if=/dev/zero of=/tmp/full bs=64k || true")
        body = photo.read_bytes()
        form = requests.Request("POST", "http://x", files={"image": body + bytes(2**21)}).prepare()
        for data, headers in ((body, {}), (form.body, form.headers)):
            for _ in range(4 * workers):  # so that each worker gets some
                assert post(container.url, data, headers=headers).status_code == 200
        assert get(f"{container.url}/metrics").ok


def test_code_in_a_decoder_gets_at_nothing_of_the_container(image, tmp_path):
    path = "/home/bentoml/bento/src/simplestack/serving/images.py"
    source = docker("run", "--rm", "--entrypoint", "cat", image, path)
    (tmp_path / "images.py").write_text(f"{source}\n{taken_over.HOOK}")
    options = ("--env", "API_TOKEN=sesame", "--volume", f"{tmp_path}/images.py:{path}:ro")
    with dyno(image, *options) as container:
        attack = taken_over.attack([*range(1, 100)])  # ids in the container: 1 is gunicorn
        sent = post(container.url, attack, headers={"Authorization": "Bearer sesame"})
        taken_over.check(taken_over.outcomes(sent.json()["error"]))


@pytest.mark.parametrize(("workers", "memory"), [(1, "512m"), (2, "1g")])
def test_hostile_pictures_cost_no_other_client_an_answer(image, photo, workers, memory):
    options = ("--memory", memory, "--memory-swap", memory, "--env", f"WEB_CONCURRENCY={workers}")
    body, allowed = photo.read_bytes(), workers * 50 * MB
    largest = body.ljust(hostile.MAX_BYTES, b"\0")  # what others may send, too
    with dyno(image, *options) as container:
        for others, count in ((body, 200), (largest, 40)):
            sent = itertools.count()
            load(container.url, others, 8, lambda sent=sent, count=count: next(sent) >= count)

        def processes() -> list[str]:
            return docker("top", container.id, "-o", "pid,comm").split("\n")

        used, before = container.memory()[1], processes()
        bodies = [*map(hostile.build, hostile.KINDS)]
        outcome = hostile.attack(container.url, bodies, 8, body)
        # The last runaway, whose client has gone, has 4 s of CPU time, at low priority.
        deadline = time.monotonic() + 30
        while (growth := container.memory()[1] - used) > allowed and time.monotonic() < deadline:
            time.sleep(0.5)
        after = processes()
    assert set(outcome.others) == {200}
    assert set(outcome.hostile) <= {200, 400, 413, 503, 504}
    assert np.percentile(outcome.photos, 99) <= 2
    assert max(outcome.probes) <= 0.5
    assert growth <= allowed
    assert len(after) == len(before)
    assert [x for x in after if "gunicorn" in x] == [x for x in before if "gunicorn" in x]


READ_ONLY = ("--read-only", "--tmpfs", "/tmp:rw,mode=1777")  # noqa: S108
UNPRIVILEGED = ("--cap-drop", "ALL", "--security-opt", "no-new-privileges")


class Host(NamedTuple):
    options: tuple[str, ...]
    port: int
    signal: str = "TERM"
    seconds: int = 10  # until it kills


HOSTS = {  # as docs/deployment.md sets them up
    "docker run": Host((), 5000),
    "heroku": Host(("--env", "PORT=31415", "--user", "12345:0"), 31415, seconds=30),
    "cloud run": Host(("--env", "PORT=8080"), 8080),
    "render": Host(("--env", "PORT=10000"), 10000, seconds=30),
    "railway": Host(("--env", "PORT=5000"), 5000),
    "fly": Host(("--user", "0:0"), 5000),
    "fly without kill_signal": Host(("--user", "0:0"), 5000, "INT", 5),
    "space": Host(("--user", "1000:1000"), 5000),
    "compose": Host(("--user", "12345:0", *READ_ONLY), 5000, seconds=30),
    "kubernetes": Host(
        ("--env", "PORT=5000", "--user", "12345", *READ_ONLY, *UNPRIVILEGED), 5000, seconds=30
    ),
}


def visit(image, photo, host):
    port = local_server.free_port()
    options = ("--publish", f"127.0.0.1:{port}:{host.port}", *host.options)
    memory = ("--memory", "512m", "--memory-swap", "512m")
    with running(*options, *memory, image, port=port) as container:
        answer = local_server.predict(container.url, photo)
        began = time.monotonic()
        docker("kill", "--signal", host.signal, container.id)
        return answer, docker("wait", container.id), time.monotonic() - began


@pytest.fixture(scope="module")
def visits(image, photo):
    with ThreadPoolExecutor(4) as pool:
        yield {name: pool.submit(visit, image, photo, host) for name, host in HOSTS.items()}


@pytest.mark.parametrize("name", HOSTS)
def test_the_image_keeps_the_rules_of_each_host(visits, name):
    answer, exit_code, seconds = visits[name].result()
    assert answer.startswith('{"label": ')
    assert exit_code == "0"
    assert seconds <= HOSTS[name].seconds


@pytest.mark.usefixtures("image")
def test_compose_serves_it():
    port = local_server.free_port()
    compose = ("docker", "compose", "--project-name", "rehearsal", "--file", "compose.yaml")
    options = {**rehearsal, "PORT": str(port)}
    try:
        result = run(*compose, "up", "--detach", **options)
        assert result.returncode == 0, result.stderr
        name = docker("ps", "--quiet", "--filter", "name=rehearsal-classifier")
        container = Container(name, f"http://127.0.0.1:{port}")
        wait_until_ready(container.url, container.failure)
    finally:
        run(*compose, "down", **options)


# deploy.sh with Heroku's CLI, a registry and a stand-in for Heroku itself


@pytest.fixture(scope="module")
def older_store(engine) -> Iterator[dict[str, str]]:  # noqa: ARG001
    """The environment of an engine with the image store from before the containerd store."""
    environment = {"DOCKER_HOST": "unix:///run/rehearsal-classic/docker.sock"}
    inspect = ("docker", "image", "inspect", BASE)
    with background("sh", "tests/rehearsal/engine.sh", "classic", **rehearsal) as process:
        while run(*inspect, **rehearsal | environment).returncode != 0:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.2)
        yield environment
        process.terminate()


# As BuildKit builds by itself since 0.31:
OCI = '[ "$1" != build ] || set -- "$@" --output type=image,oci-mediatypes=true\n'
REJECTED = """heroku create refused --stack container --no-remote
    heroku container:login
    cd $SAVED_PATH
    heroku container:push web --app refused"""
PRIVATE = """heroku create private --stack container --no-remote
    heroku config:set API_TOKEN=secret --app private
    API_TOKEN=secret sh deploy.sh private
    sh deploy.sh private"""
CRASHING = """heroku create crashing --stack container --no-remote
    heroku config:set MAX_BYTES=nonsense --app crashing
    READY_WITHIN=10 sh deploy.sh crashing"""


@pytest.fixture(scope="module")
def scenarios(older_store, tmp_path_factory) -> dict[str, tuple[str, dict[str, str]]]:
    """Shell commands and their environment, by name; each has apps of its own."""
    folder = tmp_path_factory.mktemp("heroku")
    docker_of_oci = f'{OCI}exec {STATE}/engine/usr/bin/docker "$@"'
    oci = {"PATH": on_the_path(folder / "oci", docker=docker_of_oci)}
    arm_path = on_the_path(folder / "arm", uname="echo arm64")
    arm = {"PATH": arm_path, "DOCKER_DEFAULT_PLATFORM": "linux/arm64"}  # unless amd64 is named
    config = json.loads((STATE / "docker" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"cliPluginsExtraDirs": []}))
    (programs := folder / "no-docker").mkdir()
    for program in (x for path in rehearsal["PATH"].split(":") for x in Path(path).glob("*")):
        if program.name != "docker" and not (programs / program.name).exists():
            (programs / program.name).symlink_to(program.absolute())
    no_buildx, no_docker = {"DOCKER_CONFIG": str(folder)}, {"PATH": str(programs)}
    return {
        "refused": (REJECTED, oci),
        "today's Docker": ("sh deploy.sh todays --yes", oci),
        "repeated": ("sh deploy.sh my-app --yes; sh deploy.sh my-app", {}),
        "older store": ("sh deploy.sh older --yes", older_store),
        "ARM": ("sh deploy.sh on-arm --yes", arm),
        "ARM, older store": ("sh deploy.sh on-older-arm --yes", arm | older_store),
        "no buildx, older store": ("sh deploy.sh no-buildx --yes", no_buildx | older_store),
        "no buildx": ("sh deploy.sh heroku-builds --yes", no_buildx),
        "no Docker": ("sh deploy.sh no-docker --yes; sh deploy.sh no-docker", no_docker),
        "by hand": ('eval "$(sh deploy.sh by-hand --dry-run)"', {}),
        "private": (PRIVATE, {}),
        "crashing": (CRASHING, {}),
        "taken": ("sh deploy.sh taken --yes", {}),
        "wrong stack": ("heroku create buildpacks --no-remote; sh deploy.sh buildpacks", {}),
        "no key": ("sh deploy.sh no-key </dev/null", {"HEROKU_API_KEY": ""}),
        "wrong key": ("sh deploy.sh wrong-key </dev/null", {"HEROKU_API_KEY": "wrong"}),
    }


@pytest.fixture(scope="module")
def deployed(scenarios, image, bento, photo):  # noqa: ARG001
    """A function that returns the result of a scenario; several run at a time."""
    common = rehearsal | {"SAVED_PATH": str(bento), "PHOTO": str(photo)}

    def start(commands: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
        return run("sh", "-euc", commands, **common | environment)

    with ThreadPoolExecutor(3) as pool:
        runs = {name: pool.submit(start, *scenario) for name, scenario in scenarios.items()}
        yield lambda name: runs[name].result()


LABEL = '{"label": '
REPEATED = {LABEL: 2, "$ heroku create my-app": 1, "heroku ps:scale web=0 --app my-app": 2}


@pytest.mark.parametrize(
    ("name", "said", "counted"),
    [
        *(("today's Docker", "", {}), ("repeated", "", REPEATED), ("ARM", "", {})),
        *(("ARM, older store", "", {}), ("by hand", "", {}), ("no Docker", "", {LABEL: 2})),
        ("older store", "heroku container:push web --app older", {}),
        ("no buildx, older store", "$ docker build --platform linux/amd64", {}),
        ("no buildx", "push --force https://git", {}),
    ],
)
def test_deploy_gets_through(deployed, bento, name, said, counted):
    result = deployed(name)
    assert result.returncode == 0, result.stdout + result.stderr
    assert LABEL in result.stdout
    assert said in result.stdout
    assert {part: result.stdout.count(part) for part in counted} == counted
    if name == "no Docker":
        assert not (bento / ".git").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("refused", ["405 Method Not Allowed", "docker push exited with"]),
        ("private", ["API_TOKEN=... sh deploy.sh private"]),
        ("crashing", ["error: it isn't ready", "code=H10", "error: MAX_BYTES='nonsense'"]),
        ("taken", ["choose another"]),
        ("wrong stack", ["heroku stack:set container --app buildpacks"]),
        ("no key", ["heroku login"]),
        ("wrong key", ["heroku login"]),
    ],
)
def test_a_deployment_that_cannot_succeed_says_why(deployed, name, said):
    result = deployed(name)
    both = result.stderr + result.stdout
    texts = {"refused": result.stderr, "private": both, "crashing": both}
    errors = texts.get(name) or error_line(result)
    assert result.returncode != 0
    assert [part for part in said if part not in errors] == []
    if name == "private":  # with its token only
        assert result.stdout.count(LABEL) == 1
