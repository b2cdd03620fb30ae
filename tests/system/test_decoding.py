"""The decoders of a server, when it ends."""

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import hostile
import psutil
import pytest
from helpers import gunicorn, post, wait_until


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


def has_computed(process):
    """Tell whether a decoder has begun with a picture, or has ended."""
    try:
        return process.cpu_times().user > 0.1
    except psutil.NoSuchProcess:
        return True
