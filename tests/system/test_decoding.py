"""The decoders of a server: when it ends, when they hang, when a picture takes one over."""

import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import hostile
import psutil
import pytest
import taken_over
from helpers import encode, get, gunicorn, post, wait_until
from PIL import Image

from simplestack.serving.decoder_pool import NOT_READY


def started(server):
    """The worker, the process that forks decoders, and these."""
    (worker,) = psutil.Process(server.pid).children()
    wait_until(worker.children)
    (fork_server,) = worker.children()
    wait_until(lambda: len(fork_server.children()) >= 2)
    return worker, fork_server, fork_server.children()


def test_decoders_end_with_a_worker_that_is_killed(gunicorn_url, gunicorn_process, photo):
    worker, fork_server, forked = started(gunicorn_process)
    worker.kill()
    wait_until(lambda: not any(process.is_running() for process in (fork_server, *forked)))
    started(gunicorn_process)
    assert post(gunicorn_url, photo.read_bytes()).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_runaway_does_not_keep_the_server_from_stopping(bento, number):
    with gunicorn(bento) as (url, server), ThreadPoolExecutor() as pool:
        worker, fork_server, forked = started(server)
        pool.submit(post, url, hostile.build("JPEG of many scans"))  # maybe without an answer
        wait_until(lambda: any(map(has_computed, forked)))
        forked = fork_server.children()
        for process in (worker, fork_server, *forked):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)  # as Heroku does
        server.send_signal(number)
        assert server.wait(timeout=15) == 0  # gunicorn itself gives up after 9 s
        wait_until(lambda: not any(process.is_running() for process in (fork_server, *forked)))


def test_a_server_whose_decoders_all_hang_is_not_ready_and_recovers(bento, photo):
    with gunicorn(bento) as (url, server):
        _, fork_server, forked = started(server)
        for process in (*forked, fork_server):
            process.suspend()
        assert get(f"{url}/readyz").json() == {"error": NOT_READY}
        assert post(url, photo.read_bytes()).status_code in {200, 504}
        wait_until(lambda: get(f"{url}/readyz").ok)
        heavy = encode(Image.new("1", (2001, 1000)), "PNG")
        for body in (photo.read_bytes(), encode(Image.new("RGB", (300, 300)), "HEIF"), heavy):
            assert post(url, body).status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux filters system calls")
def test_code_in_a_decoder_gets_at_nothing_of_the_server(bento, tmp_path):
    copy = shutil.copytree(bento, tmp_path / "bento")
    with (copy / "src/simplestack/serving/images.py").open("a") as file:
        file.write(taken_over.HOOK)
    with gunicorn(copy, API_TOKEN="sesame") as (url, server):  # noqa: S106
        worker, *_ = started(server)
        victims = [worker.pid, *(pid for pid in psutil.pids() if pid != worker.pid)]
        sent = post(url, taken_over.attack(victims), headers={"Authorization": "Bearer sesame"})
        taken_over.check(taken_over.outcomes(sent.json()["error"]))


def has_computed(process):
    """Tell whether a decoder has begun with a picture, or has ended."""
    try:
        return process.cpu_times().user > 0.1
    except psutil.NoSuchProcess:
        return True
