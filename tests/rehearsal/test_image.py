"""The image in a real Docker Engine, by Heroku's rules and by those of other hosts.

What isn't installed (`sh tests/rehearsal/install.sh`, as root on Debian) skips what needs it.
"""

import itertools
import json
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pytest
from helpers import container_command, load, run, wait_until_ready
from rehearsal.containers import BASE, MB, Container, docker, dyno, rehearsal, running

from simplestack.packing import local_server


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


class OneCore(NamedTuple):
    container: Container
    seconds: float  # until it was ready


@pytest.fixture(scope="module")
def one_core(image) -> Iterator[OneCore]:
    began = time.monotonic()
    with dyno(image, "--cpus", "1") as container:
        yield OneCore(container, time.monotonic() - began)


def test_it_is_ready_within_10_s_on_one_core(one_core):
    assert one_core.seconds <= 10


def test_it_answers_by_herokus_rules(one_core, photo):
    assert local_server.predict(one_core.container.url, photo).startswith('{"label": ')


def test_it_runs_as_the_user_that_heroku_chooses(one_core):
    assert docker("exec", one_core.container.id, "id", "-u") == "12345"


def test_threads_fit_the_quota_of_the_container(one_core):
    ask = "cd src && python -c 'from simplestack.serving.inference import cores; print(cores())'"
    assert docker("exec", one_core.container.id, "sh", "-c", ask) == "1"


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


class Minute(NamedTuple):
    outcomes: Counter[str]
    memory: list[int]  # bytes, after every 500 answers


@pytest.fixture(scope="module")
def minute(image, photo) -> Minute:
    """What 64 connections got in a minute, or in as long as a slow machine takes for 6,000."""
    outcomes, memory, end = Counter(), [], time.monotonic() + 60
    with dyno(image, "--env", "WEB_CONCURRENCY=2") as container:
        while time.monotonic() < end or outcomes.total() < 6000:
            sent = itertools.count()
            outcomes += load(
                container.url, photo.read_bytes(), 64, lambda sent=sent: next(sent) >= 500
            )
            memory.append(container.memory()[1])
    return Minute(outcomes, memory)


def test_64_connections_for_a_minute_get_answers_or_honest_refusals(minute):
    assert set(minute.outcomes) <= {"200", "503"}, minute.outcomes
    assert minute.outcomes["200"] > 1000


def test_memory_of_64_connections_stays_within_a_dyno(minute):
    assert max(minute.memory) < 450 * MB


def test_memory_levels_off_after_3000_answers(minute):
    # Each worker may still take one step of some 28 MB, when all its threads first compute at once:
    # the median leaves such steps aside, while a leak would be in every sample.
    growth = [later - earlier for earlier, later in itertools.pairwise(minute.memory[5:])]
    assert statistics.median(growth) * len(growth) <= 16 * 2**20


NOT_BEGUN = {
    *("BrokenPipeError", "ConnectionRefusedError"),
    *("ConnectionResetError", "RemoteDisconnected"),
}


class Stopped(NamedTuple):
    exit_code: str
    seconds: float
    outcomes: Counter[str]
    log: str


def stop_under_load(image: str, body: bytes, workers: str, command: tuple[str, ...]) -> Stopped:
    """Send SIGTERM to a container under load: to all its processes if a shell is the first."""
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
        return Stopped(*end.result(), outcomes, docker("logs", container.id))


@pytest.fixture(scope="module")
def stopped(image, bento, photo) -> Iterator[dict[tuple[str, bool], "Future[Stopped]"]]:
    """Containers that are stopped under load, all at once."""
    without_exec = container_command(bento).replace("exec ", "")
    commands = {False: (), True: ("sh", "-c", f"{without_exec}; exit $?")}
    with ThreadPoolExecutor(4) as pool:
        yield {
            (workers, shell): pool.submit(
                stop_under_load, image, photo.read_bytes(), workers, commands[shell]
            )
            for workers, shell in itertools.product(("1", "2"), (False, True))
        }


@pytest.mark.parametrize("to_all", [False, True], ids=["to_the_first", "to_all_behind_a_shell"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_under_load_leaves_no_request_that_has_begun_unanswered(stopped, workers, to_all):
    result = stopped[workers, to_all].result()
    assert result.exit_code == "0"
    assert result.seconds <= 10
    records = [json.loads(line) for line in result.log.splitlines()]
    statuses = Counter(str(record["status"]) for record in records if "status" in record)
    assert statuses == {"200": result.outcomes["200"]}, result.outcomes
    assert set(result.outcomes) <= {"200", *NOT_BEGUN}, result.outcomes


READ_ONLY = ("--read-only", "--tmpfs", "/tmp:rw,mode=1777")  # noqa: S108
UNPRIVILEGED = ("--cap-drop", "ALL", "--security-opt", "no-new-privileges")


class Host(NamedTuple):
    """How docs/deployment.md sets a host up."""

    options: tuple[str, ...]
    port: int
    signal: str = "TERM"
    seconds: int = 10  # until it kills


HOSTS = {
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


class Visit(NamedTuple):
    answer: str
    exit_code: str
    seconds: float  # to stop


def visit(image, photo, host: Host) -> Visit:
    """Run the image as a host does: start it, predict a photo, stop it."""
    port = local_server.free_port()
    options = ("--publish", f"127.0.0.1:{port}:{host.port}", *host.options)
    memory = ("--memory", "512m", "--memory-swap", "512m")
    with running(*options, *memory, image, port=port) as container:
        answer = local_server.predict(container.url, photo)
        began = time.monotonic()
        docker("kill", "--signal", host.signal, container.id)
        return Visit(answer, docker("wait", container.id), time.monotonic() - began)


@pytest.fixture(scope="module")
def visits(image, photo) -> Iterator[dict[str, "Future[Visit]"]]:
    """What came of each host, several at a time."""
    with ThreadPoolExecutor(4) as pool:
        yield {name: pool.submit(visit, image, photo, host) for name, host in HOSTS.items()}


@pytest.mark.parametrize("name", HOSTS)
def test_the_image_keeps_the_rules_of_each_host(visits, name):
    result = visits[name].result()
    assert result.answer.startswith('{"label": ')
    assert result.exit_code == "0"
    assert result.seconds <= HOSTS[name].seconds


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
