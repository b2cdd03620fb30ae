"""The pool of decoders: processes that decode pictures, and may die of them.

No check beforehand finds every picture that takes too much time or memory, and a thread can't be
stopped. So decoders are processes with limits that the kernel enforces, even within C code. Each
has a socket of its own, and shares nothing that it could leave locked when it is killed.

There are two lanes. In the fast lane, a picture may have few pixels and take a fraction of a
second. Pictures that fail there go to the slow lane: one at a time, at low priority, with the rest
of the container's memory.
"""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

from starlette.exceptions import HTTPException

from simplestack.serving import decoder, errors, images
from simplestack.serving.cgroup import memory_limit
from simplestack.serving.decoder import MB, REPLY_HEAD, Limits
from simplestack.serving.settings import Settings

FAST_SECONDS, SLOW_SECONDS = 0.25, 4.0  # of CPU time for a picture
FAST_PIXELS = 2_000_000  # as they leave the format's decoder
FAST_MEMORY = 32 * MB  # bytes beyond those of an idle decoder
RESERVED = 325 * MB  # bytes of the container's memory for all but the slow lane
MAX_MEMORY = 1000 * MB  # of the slow lane
PHOTO_BYTES = 3 * images.CROP**2
MAX_WAITING = 8  # pictures that may wait for the slow lane
RETRY_AFTER = {"Retry-After": "1"}
TOO_MANY_LARGE = "Too many large pictures at once: try again in a second."
Body = bytes | bytearray
Reply = tuple[bool, bytes]
"""Whether it is an error, and its bytes."""


class Decoders:
    """The two lanes, and the fork server: the parent process of all decoders."""

    def __init__(self, settings: Settings, cores: int) -> None:
        share = memory_limit() // settings.web_concurrency
        memory = min(MAX_MEMORY, max(FAST_MEMORY, share - RESERVED))
        pixels = settings.max_pixels
        self.fast = Lane(self.start, Limits(FAST_SECONDS, FAST_MEMORY, 0, min(pixels, FAST_PIXELS)))
        self.slow = Lane(self.start, Limits(SLOW_SECONDS, memory, 10, pixels))
        self.count = max(1, min(3, cores, share // (256 * MB)))
        self.fork_server: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        """Start the fork server and its decoders."""
        for _ in range(self.count):
            self.fast.add()
        self.slow.add()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill the fork server and its decoders, even while they decode."""
        self.control.close()
        self.fast.close()
        self.slow.close()
        if self.fork_server:
            self.fork_server.wait()

    def start(self, limits: Limits) -> socket.socket:
        """Start a decoder; return the socket to it."""
        if self.fork_server is None or self.fork_server.poll() is not None:
            self.control, theirs = socket.socketpair()
            with theirs:
                self.fork_server = subprocess.Popen(
                    [sys.executable, "-m", decoder.__name__, str(theirs.fileno())],
                    cwd=Path(__file__).parents[2],
                    env={
                        **os.environ,
                        "OPENBLAS_NUM_THREADS": "1",  # forking needs a single thread
                        "MALLOC_ARENA_MAX": "1",  # a second arena would reserve 64 MB for HEIC
                    },
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            socket.send_fds(self.control, [json.dumps(limits).encode()], [theirs.fileno()])
        return ours

    async def decode(self, body: Body, content_type: str = "") -> tuple[bytes, str]:
        """Return the photo in a body, 224×224×3 uint8 RGB, and `top_k` as JSON, or "" without one.

        Check `top_k`: a picture may have taken the decoder over. Raises ImageError, and
        HTTPException (503) if too many pictures wait.
        """
        try:
            reply = await self.fast.decode(body, content_type)
        except (errors.TooLargeError, errors.DamagedImageError):  # perhaps for lack of memory
            if self.slow.waiting >= MAX_WAITING:
                raise HTTPException(503, TOO_MANY_LARGE, RETRY_AFTER) from None
            reply = await self.slow.decode(body, content_type)
        return reply[:PHOTO_BYTES], reply[PHOTO_BYTES:].decode("latin-1")


class Lane:
    """Decoders with the same limits."""

    def __init__(self, start: Callable[[Limits], socket.socket], limits: Limits) -> None:
        self.start, self.limits, self.waiting, self.closed = start, limits, 0, False
        self.idle: asyncio.Queue[socket.socket] = asyncio.Queue()

    def add(self) -> None:
        """Start another decoder; retry every second if there are too many files or processes."""
        if self.closed:
            return
        try:
            self.idle.put_nowait(self.start(self.limits))
        except OSError as error:
            logging.getLogger(__name__).warning("can't start a decoder: %s", error)
            asyncio.get_running_loop().call_later(1, self.add)

    def close(self) -> None:
        """Close the sockets to idle decoders, and start no more of them."""
        self.closed = True
        while not self.idle.empty():
            self.idle.get_nowait().close()

    async def decode(self, body: Body, content_type: str = "") -> bytes:
        """Return a decoder's reply to a body: the photo and `top_k`. Raises ImageError."""
        self.waiting += 1
        try:
            while has_ended(process := await self.idle.get()):
                process.close()
                self.add()
                await asyncio.sleep(0)
        finally:
            self.waiting -= 1
        # A decoder can't be cancelled: if the client hangs up, it becomes idle after its reply.
        failed, reply = await asyncio.shield(self._exchange(process, body, content_type))
        if failed:
            kind, message = json.loads(reply)
            raise errors.IMAGE_ERRORS[kind](message)
        return reply

    async def _exchange(self, process: socket.socket, body: Body, content_type: str) -> Reply:
        try:
            reply = await ask(process, body, content_type)
        except (OSError, EOFError, MemoryError):  # the decoder is dead, or can't take the body
            process.close()
            self.add()
            return True, decoder.TOO_HEAVY_REPLY
        self.idle.put_nowait(process)
        return reply


def has_ended(process: socket.socket) -> bool:
    """Return whether an idle decoder has ended."""
    try:
        return not process.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


async def ask(process: socket.socket, body: Body, content_type: str = "") -> Reply:
    """Send a body to a decoder; return its reply.

    Raises EOFError or OSError if the decoder dies.
    """
    loop = asyncio.get_running_loop()

    async def receive(size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            if not (chunk := await loop.sock_recv(process, size - len(received))):
                raise EOFError
            received += chunk
        return bytes(received)

    await loop.sock_sendall(process, f"{json.dumps([content_type, len(body)])}\n".encode())
    await loop.sock_sendall(process, body)
    failed, size = REPLY_HEAD.unpack(await receive(REPLY_HEAD.size))
    return failed, await receive(size)
