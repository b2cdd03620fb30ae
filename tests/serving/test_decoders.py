"""Decoders: what they may use, and that nobody but them dies of a picture."""

import asyncio
import io
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import hostile
import numpy as np
import psutil
import pytest
from helpers import encode, gunicorn, post
from PIL import Image

from simplestack.serving import container, decoder, decoders, errors, images, settings

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps such limits")
SIZES = {"plain": (2000, 1500), "wide": (9000, 300), "tall": (300, 9000), "square": (3000, 3000)}
KINDS = (
    *(("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "L", {})),
    *(("JPEG", "CMYK", {"progressive": True}), ("PNG", "RGB", {}), ("PNG", "RGBA", {})),
    *(("PNG", "P", {}), ("PNG", "1", {}), ("PNG", "I;16", {}), ("GIF", "P", {})),
    *(("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("AVIF", "RGB", {})),
    *(("TIFF", "RGB", {}), ("TIFF", "CMYK", {"compression": "tiff_lzw"}), ("BMP", "RGB", {})),
    *(("JPEG", "RGB", {"progressive": True, "subsampling": "4:4:4"}), ("MPO", "RGB", {})),
    *(("HEIF", "RGB", {}), ("HEIF", "RGB", {"chroma": 444}), ("HEIF", "RGBA", {"chroma": 444})),
    *(("HEIF", "L", {}), ("HEIF", "I;16", {}), ("PPM", "RGB", {}), ("PPM", "I;16", {})),
    *(("TIFF", "I;16B", {}), ("TIFF", "I", {}), ("TIFF", "F", {})),
)


def answers(*asked: tuple[decoder.Limits, bytes]) -> list[tuple[bool, bytes]]:
    """Return what decoders with such limits answer, each to one picture."""

    async def ask_all() -> list[tuple[bool, bytes]]:
        async with decoders.Decoders(settings.Settings(), cores=1) as started:
            received = []
            for limits, data in asked:
                with started.start(limits) as process:
                    received.append(await decoders.ask(process, data))
            return received

    return asyncio.run(ask_all())


@linux
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_memory_that_is_estimated_is_enough(size):
    asked = []
    for kind, mode, options in KINDS:
        data = encode(Image.new(mode, size), kind, **options)
        image = Image.open(io.BytesIO(data))
        needed = images.memory_to_open(data) + len(data) + images.memory_to_decode(image)
        asked.append((decoder.Limits(10, needed, 0, images.MAX_PIXELS), data))
    received = answers(*asked)
    assert [
        (kind, answer) for kind, (failed, answer) in zip(KINDS, received, strict=True) if failed
    ] == []


@linux
@pytest.mark.parametrize(
    "kind", ["large TIFF", "large PNG", "large WebP", "large AVIF", "large HEIC"]
)
def test_a_picture_that_does_not_fit_is_refused_with_the_number(kind):
    limits = decoder.Limits(10, 100_000_000, 0, images.MAX_PIXELS)
    ((failed, answer),) = answers((limits, build(kind)))
    assert failed
    assert b"TooHeavyError" in answer
    assert b"MB of at most 100 MB" in answer


def phone_photo(width: int, height: int, kind: str, **options: object) -> bytes:
    """Encode a picture with as much detail as photos have."""
    noise = Image.effect_noise((width // 8, height // 8), 60).convert("RGB")
    return encode(noise.resize((width, height)), kind, **options)


@linux
@pytest.mark.parametrize(
    ("size", "kind", "options"),
    [
        ((8192, 6144), "JPEG", {}),
        ((8192, 6144), "JPEG", {"progressive": True}),
        ((12000, 9000), "JPEG", {"quality": 50}),
        ((16320, 12240), "JPEG", {"quality": 20}),
        ((4096, 3072), "WEBP", {"method": 0}),
        ((4096, 3072), "AVIF", {"speed": 10}),
        ((4032, 3024), "HEIF", {}),
    ],
    ids=["jpeg", "progressive", "108", "200", "webp", "avif", "heic"],
)
def test_the_photos_of_phones_are_decoded_in_512_mb(monkeypatch, size, kind, options):
    monkeypatch.setattr(decoders, "memory_limit", lambda: 2**29)
    slow = decoders.Decoders(settings.Settings(), cores=1).slow.limits
    ((failed, answer),) = answers((slow, phone_photo(*size, kind, **options)))
    assert not failed, answer


@linux
def test_a_progressive_jpeg_that_does_not_fit_is_refused_with_the_number(monkeypatch):
    monkeypatch.setattr(decoders, "memory_limit", lambda: 2**29)
    slow = decoders.Decoders(settings.Settings(), cores=1).slow.limits
    data = encode(Image.new("RGB", (12000, 9000)), "JPEG", progressive=True)
    ((failed, answer),) = answers((slow, data))
    assert failed
    assert b"MB of at most 211 MB" in answer


@linux
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("large HEIC", "too much memory"),
        ("HEIC of more pictures", "can't be read"),
        ("HEIC of a false size", "damaged or cut off"),
        ("large PPM", "too much memory"),
        ("PPM of many comments", "too much time or memory"),
        ("plain PPM", "too much time or memory"),
    ],
)
def test_a_hostile_heic_or_ppm_costs_its_decoder_at_most(kind, words):
    async def decode() -> None:
        async with decoders.Decoders(settings.Settings(), cores=1) as both_lanes:
            lane = decoders.Lane(both_lanes.start, decoder.Limits(1, 211_000_000, 0, 64_000_000))
            lane.add()
            with closing(lane), pytest.raises(errors.HttpError, match=words):
                await lane.decode(build(kind))

    asyncio.run(decode())


@pytest.mark.parametrize(("rows", "columns", "extra"), [(6, 8, 0), (30, 30, 0), (2, 2, 900)])
def test_a_heic_of_tiles_is_decoded(rows, columns, extra):
    side = 512 if rows == 6 else 64
    data = hostile.heic(side, rows, columns, extra)
    ((failed, answer),) = answers((decoder.Limits(4, 211_000_000, 0, 64_000_000), data))
    assert not failed, answer
    assert np.frombuffer(answer, np.uint8).reshape(-1, 3).mean(0) == pytest.approx(
        [255, 0, 0], abs=3
    )


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "536870912\n"}, 2**29),
        ({"memory/memory.limit_in_bytes": "536870912\n"}, 2**29),
        ({"memory.max": "max\n"}, None),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({}, None),
    ],
)
def test_the_memory_of_a_container_is_its_own(tmp_path, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert container.memory_limit(tmp_path) == (limit or psutil.virtual_memory().total)


@pytest.mark.parametrize(
    ("memory", "workers", "cores", "count"),
    [(2**29, 1, 8, 2), (2**29, 2, 8, 1), (2**30, 1, 8, 3), (2**29, 1, 1, 1), (2**34, 1, 64, 3)],
)
def test_there_are_as_many_decoders_as_cores_and_memory_allow(
    monkeypatch, memory, workers, cores, count
):
    monkeypatch.setattr(decoders, "memory_limit", lambda: memory)
    both_lanes = decoders.Decoders(settings.Settings(web_concurrency=workers), cores)
    assert both_lanes.count == count


def build(kind: str) -> bytes:
    return hostile.KINDS[kind]()


def started(server) -> tuple[psutil.Process, psutil.Process, list[psutil.Process]]:
    """The worker, the process that forks decoders, and these."""
    (worker,) = psutil.Process(server.pid).children()
    (nursery,) = worker.children()
    wait_until(lambda: len(nursery.children()) >= 2)
    return worker, nursery, nursery.children()


def busiest(processes: list[psutil.Process]) -> psutil.Process:
    """Return the one that computes, once one of them does."""
    before = {process: process.cpu_times().user for process in processes}
    while True:
        time.sleep(0.05)
        for process in processes:
            if process.cpu_times().user > before[process] + 0.05:
                return process


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@linux
def test_decoders_load_nothing_but_what_decoding_needs(bento):
    with gunicorn(bento) as (_, server):
        _, nursery, forked = started(server)
        assert 2 <= len(forked) <= 4
        for process in (nursery, *forked):
            files = " ".join(mapping.path for mapping in process.memory_maps())
            assert "PIL" in files
            assert not any(name in files for name in ("torch", "onnxruntime", "pydantic"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_decoder_that_dies_within_c_code_costs_nobody_an_answer(bento, photo, number):
    with gunicorn(bento) as (url, server), ThreadPoolExecutor() as pool:
        *_, forked = started(server)
        heavy = pool.submit(post, url, build("JPEG of many scans"))
        time.sleep(1)  # until it is in the slow lane
        *_, forked = started(server)
        busiest(forked).send_signal(number)
        assert heavy.result().status_code == 413
        assert "needs too much time or memory" in heavy.result().json()["error"]
        assert post(url, photo.read_bytes()).status_code == 200


def test_decoders_that_die_while_10_mb_arrive_cost_nobody_an_answer(bento, photo):
    body = photo.read_bytes() + bytes(9 * 2**20)  # which a JPEG may have behind its end
    with gunicorn(bento) as (url, server), ThreadPoolExecutor() as pool:
        *_, forked = started(server)
        for process in forked:
            process.suspend()
        answer = pool.submit(post, url, body)
        time.sleep(1)  # until the socket to one of them is full
        for process in forked:
            process.kill()
        assert answer.result().status_code in {200, 413}
        assert [post(url, body).status_code for _ in range(8)] == [200] * 8


def test_a_killed_parent_of_the_decoders_is_replaced(bento, photo):
    with gunicorn(bento) as (url, server):
        _, nursery, forked = started(server)
        for process in (nursery, *forked):
            process.kill()
        answers = [post(url, photo.read_bytes()).status_code for _ in range(8)]
        assert answers[-4:] == [200] * 4


def test_decoders_end_with_a_worker_that_is_killed(bento, photo):
    with gunicorn(bento) as (url, server):
        worker, nursery, forked = started(server)
        worker.kill()
        wait_until(lambda: not any(process.is_running() for process in (nursery, *forked)))
        wait_until(lambda: psutil.Process(server.pid).children())
        assert post(url, photo.read_bytes()).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_runaway_keeps_nobody_from_stopping(bento, number):
    with gunicorn(bento) as (url, server):
        worker, nursery, forked = started(server)
        runaway = threading.Thread(target=post_in_vain, args=(url, build("JPEG of many scans")))
        runaway.start()
        busiest(forked)
        began = time.monotonic()
        for process in (worker, nursery, *forked):
            process.send_signal(signal.SIGTERM)  # as Heroku does
        os.kill(server.pid, number)
        server.wait(timeout=30)
        assert time.monotonic() - began < 10.5
        wait_until(lambda: not any(process.is_running() for process in (nursery, *forked)))
        runaway.join()


def post_in_vain(url: str, body: bytes) -> None:
    """Post a picture to a server that may be gone before it answers."""
    with suppress(OSError):
        post(url, body)
