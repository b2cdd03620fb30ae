"""The pool of decoders: a picture can kill its decoder only."""

import asyncio
import base64
import json
import random
import select
import signal
import socket
import sys
from contextlib import suppress

import hostile
import psutil
import pytest
from helpers import encode, idle_decoders, until
from PIL import Image
from starlette.exceptions import HTTPException

from simplestack.serving import decoder, decoder_pool, errors, formats, settings
from simplestack.serving.decoder import Limits
from simplestack.serving.formats import FORMATS

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
    await until(lambda: len(fork_server.children()) == 2 * pool.count + 1)
    return fork_server, fork_server.children()


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
    await until(lambda: not lane.starting)
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


RARE = [encode(Image.new("RGB", (300, 300), "red"), kind) for kind in ("HEIF", "AVIF", "TIFF")]
COMMON = [kind for kind in FORMATS if kind not in {"HEIF", "AVIF", "TIFF"}]


@pytest.mark.parametrize("data", RARE, ids=["HEIF", "AVIF", "TIFF"])
async def test_each_picture_of_a_rare_format_has_a_decoder_of_its_own(pool, data):
    form = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n%b\r\n--x--\r\n'
    content = {"inputs": base64.b64encode(data).decode()}
    for body, content_type in (
        (data, ""),
        (form % data, "multipart/form-data; boundary=x"),
        (json.dumps(content).encode(), "application/json"),
    ):
        fast, rare, slow = await idle_decoders(pool)
        photo, _ = await pool.decode(body, content_type)
        assert len(photo) == 3 * 224**2
        after = await idle_decoders(pool)
        assert (after[0], after[2]) == (fast, slow)
        assert len(after[1] - rare) == 1
    with pytest.raises(errors.RareFormatError):
        await pool.fast.decode(data)


async def test_pictures_of_common_formats_share_decoders(pool):
    before = await idle_decoders(pool)
    for kind in COMMON:
        await pool.decode(encode(Image.new("RGB", (300, 300)), kind))
    assert await idle_decoders(pool) == before


def test_no_library_for_a_rare_format_sees_other_first_bytes():
    rng = random.Random(0)
    seen = [Image.OPEN[kind][1] for kind in FORMATS if kind not in COMMON]
    for data in (*RARE, *(rng.randbytes(16) for _ in range(1000))):
        for at in range(12):
            head = bytearray(data[:16])
            head[at] ^= 1 << rng.randrange(8)
            accepted = [accept(bytes(head)) for accept in seen]
            assert not any(accepted) or formats.RARE.match(head)


async def test_each_picture_of_the_slow_lane_has_a_decoder_of_its_own(pool):
    fast, rare, slow = await idle_decoders(pool)
    await pool.decode(encode(Image.new("1", (2001, 1000)), "PNG"))
    after = await idle_decoders(pool)
    assert after[:2] == [fast, rare]
    assert not after[2] & slow


async def test_a_reply_is_limited_as_a_picture_may_have_taken_its_decoder_over():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        theirs.sendall(decoder.REPLY_HEAD.pack(False, 2**40))
        with pytest.raises(EOFError):
            await decoder_pool.ask(ours, b"")


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
    await until(lambda: pool.fast.idle.qsize() == pool.count)
    for process in forked:
        process.suspend()
    idle = [pool.fast.idle.get_nowait() for _ in range(pool.count)]
    sockets = [process for process, _ in idle]
    for process in idle:
        pool.fast.idle.put_nowait(process)
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
        await until(lambda: "can't start a decoder: too many files" in caplog.text)
    assert lane.idle.empty()
    await lane.decode(photo.read_bytes())
    await until(lambda: not lane.starting)
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
