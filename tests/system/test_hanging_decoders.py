"""Decoders and their parent that are stopped: each is replaced."""

import asyncio
import os
import signal

import psutil
import pytest
from helpers import encode, idle_decoders, until
from PIL import Image
from starlette.exceptions import HTTPException

from simplestack.serving import decoder_pool, errors, settings

pytestmark = pytest.mark.anyio


@pytest.fixture
async def hasty(anyio_backend, monkeypatch):  # noqa: ARG001
    """A pool that waits for seconds only."""
    monkeypatch.setattr(decoder_pool, "FAST_WAIT", 1)
    monkeypatch.setattr(decoder_pool, "START_WAIT", 3)
    async with decoder_pool.Decoders(settings.Settings(timeout=2), cores=2) as pool:
        yield pool


@pytest.mark.parametrize("stopped", ["fast", "rare", "slow", "parent", "all"])
async def test_stopped_decoders_and_their_parent_are_replaced(hasty, photo, stopped):
    fast, rare, slow = await idle_decoders(hasty)
    parent = hasty.fork_server.pid
    groups = {"fast": fast, "rare": rare, "slow": slow, "parent": {parent}}
    numbers = groups.get(stopped) or set().union(*groups.values())
    for number in numbers:
        os.kill(number, signal.SIGSTOP)
    bodies = [
        photo.read_bytes(),
        encode(Image.new("RGB", (300, 300)), "HEIF"),
        encode(Image.new("1", (2001, 1000)), "PNG"),
    ]
    lost = 0
    for body in bodies * 3:
        try:
            async with asyncio.timeout(30):
                await hasty.decode(body)
        except errors.TooLargeError:  # for which the gate's timeout has been faster
            lost += 1
    assert lost <= {"slow": 1, "all": 2}.get(stopped, 0)
    await idle_decoders(hasty)
    await until(lambda: not any(psutil.pid_exists(number) for number in numbers))
    if stopped in {"fast", "rare", "slow"}:
        assert hasty.fork_server.pid == parent


async def test_a_pool_is_ready_only_if_a_decoder_answers(hasty):
    fast, *_ = await idle_decoders(hasty)
    await hasty.check()
    for number in fast:
        os.kill(number, signal.SIGSTOP)
    for _ in fast:
        with pytest.raises(HTTPException, match="503: No decoder answers"):
            await hasty.check()
    await hasty.check()
    assert not fast & (await idle_decoders(hasty))[0]
