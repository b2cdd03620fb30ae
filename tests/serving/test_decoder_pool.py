"""The pool of decoders: a picture can kill its decoder only."""

import asyncio
import select
import signal
import sys
from contextlib import suppress

import hostile
import psutil
import pytest
from helpers import encode
from PIL import Image
from starlette.exceptions import HTTPException

from simplestack.serving import decoder_pool, errors, settings
from simplestack.serving.decoder import Limits

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps such limits")
pytestmark = pytest.mark.anyio
NO_ANSWER = "needs too much memory or time"


@pytest.fixture
async def pool(anyio_backend):  # noqa: ARG001
    async with decoder_pool.Decoders(settings.Settings(), cores=2) as pool:
        yield pool


async def processes(pool):
    """Return the fork server and its decoders."""
    fork_server = psutil.Process(pool.fork_server.pid)
    await until(lambda: len(fork_server.children()) == pool.count + 1)
    return fork_server, fork_server.children()


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def kill(*killed):
    """Kill processes, all of them before anything else runs."""
    for process in killed:
        process.kill()
    ended = psutil.STATUS_ZOMBIE
    await until(lambda: not any(x.is_running() and x.status() != ended for x in killed))


@pytest.mark.parametrize(
    ("memory", "workers", "cores", "count"),
    [(2**29, 1, 8, 2), (2**29, 2, 8, 1), (2**30, 1, 8, 3), (2**29, 1, 1, 1), (2**34, 1, 64, 3)],
)
def test_cores_and_memory_limit_the_decoders(monkeypatch, memory, workers, cores, count):
    monkeypatch.setattr(decoder_pool, "memory_limit", lambda: memory)
    assert decoder_pool.Decoders(settings.Settings(web_concurrency=workers), cores).count == count


@linux
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        *(("large HEIC", NO_ANSWER), ("HEIC of more pictures", "can't be read")),
        *(("HEIC of a false size", "damaged or cut off"), ("large PPM", "too large to decode")),
        *(("PPM of many comments", NO_ANSWER), ("plain PPM", NO_ANSWER)),
    ],
)
async def test_a_hostile_heic_or_ppm_costs_its_decoder_at_most(pool, kind, words):
    lane = decoder_pool.Lane(pool.start, Limits(1, 211_000_000, 0, 64_000_000))
    lane.add()
    with pytest.raises(errors.ImageError, match=words):
        await lane.decode(hostile.build(kind))
    lane.close()


@linux
@pytest.mark.parametrize(
    ("data", "error"),
    [
        (encode(Image.new("1", (2001, 1000)), "PNG"), errors.TooLargeError),  # by its pixels
        (hostile.build("lossless WebP"), errors.DamagedImageError),  # for lack of memory
    ],
    ids=["PNG", "WebP"],
)
async def test_a_picture_too_large_for_the_fast_lane_is_decoded_in_the_slow_one(pool, data, error):
    with pytest.raises(error):
        await pool.fast.decode(data)
    photo, top_k = await pool.decode(data)
    assert (len(photo), top_k) == (3 * 224**2, "")


@linux
async def test_decoders_load_nothing_but_what_decoding_needs(pool):
    fork_server, forked = await processes(pool)
    for process in (fork_server, *forked):
        files = " ".join(mapping.path for mapping in process.memory_maps())
        assert "PIL" in files
        assert not any(name in files for name in ("torch", "onnxruntime", "pydantic"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_decoder_that_dies_within_c_code_costs_no_other_an_answer(pool, photo, number):
    fork_server, forked = await processes(pool)
    await until(lambda: any(process.nice() > fork_server.nice() for process in forked))
    slow = max(forked, key=psutil.Process.nice)  # that of the slow lane
    heavy = asyncio.create_task(pool.decode(hostile.build("JPEG of many scans")))
    await until(lambda: slow.cpu_times().user > 0.1)
    slow.send_signal(number)
    with pytest.raises(errors.TooLargeError, match=NO_ANSWER) as raised:
        await heavy
    assert raised.value.status == 413
    for decode in (pool.decode, pool.fast.decode, pool.slow.decode):
        await decode(photo.read_bytes())


async def test_decoders_that_die_while_10_mb_arrive_cost_no_other_an_answer(pool, photo):
    body = photo.read_bytes() + bytes(9 * 2**20)  # a JPEG may have them behind its end
    _, forked = await processes(pool)
    for process in forked:
        process.suspend()
    sockets = [pool.fast.idle.get_nowait() for _ in range(pool.count)]
    for socket in sockets:
        pool.fast.idle.put_nowait(socket)
    answer = asyncio.create_task(pool.decode(body))
    await until(lambda: len(select.select([], sockets, [], 0)[1]) < pool.count)  # one is full
    await kill(*forked)
    with suppress(errors.TooLargeError):
        await answer
    for _ in range(8):
        await pool.decode(body)


async def test_a_killed_parent_of_the_decoders_is_replaced(pool, photo):
    fork_server, forked = await processes(pool)
    with pool.control:  # the pool leaves the one to the killed parent to the garbage collector
        await kill(fork_server, *forked)
        for _ in range(8):
            await pool.decode(photo.read_bytes())
    assert pool.fork_server.pid != fork_server.pid


async def test_a_decoder_that_cannot_be_started_is_started_later(pool, photo, monkeypatch, caplog):
    lane = decoder_pool.Lane(pool.start, pool.fast.limits)
    with monkeypatch.context() as full:
        full.setattr(lane, "start", lambda _: (_ for _ in ()).throw(OSError("too many files")))
        lane.add()
    assert "can't start a decoder: too many files" in caplog.text
    assert lane.idle.empty()
    await lane.decode(photo.read_bytes())
    lane.close()


async def test_no_more_than_eight_wait_for_the_slow_lane(pool, photo, monkeypatch):
    cut_off = photo.read_bytes()[:2000]
    monkeypatch.setattr(pool.slow, "waiting", 7)
    with pytest.raises(errors.DamagedImageError):
        await pool.decode(cut_off)
    pool.slow.waiting = 8
    with pytest.raises(HTTPException, match="503: Too many large pictures") as raised:
        await pool.decode(cut_off)
    assert raised.value.headers == {"Retry-After": "1"}
