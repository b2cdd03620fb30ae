"""The pool of decoders: processes that decode pictures, and may die of them.

No check beforehand finds every picture that takes too much time or memory, and a thread can't be
stopped. So decoders are processes with limits that the kernel enforces, even within C code. Each
has a socket of its own, and shares nothing that it could leave locked when it is killed.

There are three lanes. In the fast lane, a picture may have few pixels and take a fraction of a
second. Pictures of rare formats go to the rare lane, which has the same limits, and pictures that
fail in either to the slow lane: one at a time, at low priority, with the rest of the container's
memory. A decoder of these two lanes is replaced after each picture, off the answer's path: if a
picture takes it over, it sees no other.

A stopped process can't keep its own limits, so a decoder that doesn't answer in time is killed and
replaced, and so is the fork server if it doesn't start one in time: its decoders live on.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from starlette.exceptions import HTTPException

from simplestack.serving import decoder, errors, images
from simplestack.serving.cgroup import memory_limit
from simplestack.serving.decoder import HELLO, MAX_SECONDS, MB, REPLY_HEAD, Limits
from simplestack.serving.formats import RARE
from simplestack.serving.settings import Settings
from simplestack.serving.telemetry import SANDBOXED

FAST_SECONDS, SLOW_SECONDS = 0.25, 4.0  # of CPU time for a picture
FAST_WAIT = 3.0  # seconds until the slow lane gets the picture of a decoder that hangs
START_WAIT = 10.0  # seconds until a decoder says hello
FAST_PIXELS = 2_000_000  # as they leave the format's decoder
FAST_MEMORY = 32 * MB  # bytes beyond those of an idle decoder
RESERVED = 325 * MB  # bytes of the container's memory for all but the slow lane
MAX_MEMORY = 1000 * MB  # of the slow lane
PHOTO_BYTES = 3 * images.CROP**2
MAX_WAITING = 8  # pictures that may wait for the slow lane
RETRY_AFTER = {"Retry-After": "1"}
TOO_MANY_LARGE = "Too many large pictures at once: try again in a second."
NOT_READY = "No decoder answers: try again in a few seconds."
log = logging.getLogger(__name__)
Body = bytes | bytearray
Reply = tuple[bool, bytes]
"""Whether it is an error, and its bytes."""
Process = tuple[socket.socket, int]
"""The socket to a decoder, and its process id."""


class Decoders:
    """The three lanes, and the fork server: the parent process of all decoders."""

    def __init__(self, settings: Settings, cores: int) -> None:
        share = memory_limit() // settings.web_concurrency
        memory = min(MAX_MEMORY, max(FAST_MEMORY, share - RESERVED))
        pixels = settings.max_pixels
        rare = Limits(FAST_SECONDS, FAST_MEMORY, 0, min(pixels, FAST_PIXELS), FAST_WAIT)
        slow = Limits(SLOW_SECONDS, memory, 10, pixels, min(MAX_SECONDS, settings.timeout))
        self.fast = Lane(self.start, rare._replace(shared=True))
        self.rare, self.slow = Lane(self.start, rare), Lane(self.start, slow)
        self.count = max(1, min(3, cores, share // (256 * MB)))
        self.fork_server: subprocess.Popen[bytes] | None = None
        self.few = asyncio.Semaphore(self.count)  # that decode in the fast and the rare lane
        self.sandboxed = True

    async def __aenter__(self) -> Self:
        """Start the fork server and its decoders."""
        for lane in (*[self.fast, self.rare] * self.count, self.slow):
            lane.add()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill the fork server and its decoders, even while they decode."""
        for lane in (self.fast, self.rare, self.slow):
            lane.close()
        if self.fork_server and self.fork_server.poll() is None:
            self.control.close()
            os.killpg(self.fork_server.pid, signal.SIGKILL)
            self.fork_server.wait()

    def fork(self, limits: Limits, decoders: socket.socket) -> None:
        """Let the fork server, a new one if it has ended, start a decoder with a socket."""
        if self.fork_server is None or self.fork_server.poll() is not None:
            self.control, theirs = socket.socketpair()
            with theirs:
                self.fork_server = subprocess.Popen(
                    [sys.executable, "-m", decoder.__name__, str(theirs.fileno())],
                    cwd=Path(__file__).parents[2],
                    env={  # no more: the service's has its token
                        **{key: os.environ[key] for key in os.environ if key[:7] == "MALLOC_"},
                        "OPENBLAS_NUM_THREADS": "1",  # forking needs a single thread
                        "MALLOC_ARENA_MAX": "1",  # a second arena would reserve 64 MB for HEIC
                    },
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        socket.send_fds(self.control, [json.dumps(limits).encode()], [decoders.fileno()])

    async def start(self, limits: Limits) -> Process:
        """Start a decoder, and wait for its hello. Raises OSError or EOFError without one."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                self.fork(limits, theirs)
            async with asyncio.timeout(START_WAIT):
                number, sandboxed = HELLO.unpack(await receive(ours, HELLO.size))
        except BaseException as error:
            ours.close()
            if isinstance(error, TimeoutError) and self.fork_server:
                self.fork_server.kill()
                self.control.close()
            raise
        if self.sandboxed and not sandboxed:
            log.warning("decoders run without a sandbox: this host filters no system calls")
        self.sandboxed = sandboxed
        SANDBOXED.set(sandboxed)
        return ours, number

    async def decode(self, body: Body, content_type: str = "") -> tuple[bytes, str]:
        """Return the photo in a body, 224×224×3 uint8 RGB, and `top_k` as JSON, or "" without one.

        Check `top_k`: a picture may have taken the decoder over. Raises ImageError, and
        HTTPException (503) if too many pictures wait.
        """
        try:
            async with self.few:
                try:
                    lane = self.rare if RARE.match(body) else self.fast
                    reply = await lane.decode(body, content_type)
                except errors.RareFormatError:  # in a form or JSON
                    reply = await self.rare.decode(body, content_type)
        except (errors.TooLargeError, errors.DamagedImageError):  # perhaps for lack of memory
            if self.slow.waiting >= MAX_WAITING:
                raise HTTPException(503, TOO_MANY_LARGE, RETRY_AFTER) from None
            reply = await self.slow.decode(body, content_type)
        return reply[:PHOTO_BYTES], reply[PHOTO_BYTES:].decode("latin-1")

    async def check(self) -> None:
        """Raise HTTPException (503) if no decoder of the fast lane answers."""
        if self.fast.idle.qsize() + len(self.fast.starting) < self.count:
            return  # one is decoding, and may do so for FAST_WAIT
        try:
            async with asyncio.timeout(2 * FAST_WAIT):
                await self.fast.decode(b"P5 1 1 255 \0")  # the smallest picture
        except (errors.TooLargeError, TimeoutError):
            raise HTTPException(503, NOT_READY, RETRY_AFTER) from None


class Lane:
    """Decoders with the same limits."""

    def __init__(self, start: Callable[[Limits], Awaitable[Process]], limits: Limits) -> None:
        self.start, self.limits, self.waiting, self.closed = start, limits, 0, False
        self.idle: asyncio.Queue[Process] = asyncio.Queue()
        self.starting: set[asyncio.Task[None]] = set()

    def add(self) -> None:
        """Start another decoder in the background."""
        if not self.closed:
            self.starting.add(task := asyncio.create_task(self._start()))
            task.add_done_callback(self.starting.discard)

    async def _start(self) -> None:
        """Start a decoder; retry every second if there are too many files or processes."""
        while True:
            try:
                return self.idle.put_nowait(await self.start(self.limits))
            except (OSError, EOFError) as error:
                log.warning("can't start a decoder: %s", str(error) or "it doesn't answer")
                await asyncio.sleep(1)

    def replace(self, process: Process) -> None:
        """Kill a decoder, and start another."""
        if not has_ended(process[0]):  # else another process may have its id
            with suppress(ProcessLookupError):
                os.kill(process[1], signal.SIGKILL)
        process[0].close()
        self.add()

    def close(self) -> None:
        """Kill the idle decoders, and start no more of them."""
        self.closed = True
        for task in self.starting:
            task.cancel()
        while not self.idle.empty():
            self.replace(self.idle.get_nowait())

    async def decode(self, body: Body, content_type: str = "") -> bytes:
        """Return a decoder's reply to a body: the photo and `top_k`. Raises ImageError."""
        self.waiting += 1
        try:
            while has_ended((process := await self.idle.get())[0]):
                self.replace(process)
        finally:
            self.waiting -= 1
        # A decoder can't be cancelled: if the client hangs up, it becomes idle after its reply.
        failed, reply = await asyncio.shield(self._exchange(process, body, content_type))
        if failed:
            kind, message, *traceback = json.loads(reply)
            if traceback:
                log.error("a decoder failed: %.9999s", *traceback)
            raise errors.IMAGE_ERRORS[kind](message)
        return reply

    async def _exchange(self, process: Process, body: Body, content_type: str) -> Reply:
        reply: Reply = True, decoder.TOO_HEAVY_REPLY
        with suppress(OSError, EOFError, MemoryError):  # it dies, hangs, or can't take the body
            async with asyncio.timeout(self.limits.wait):
                reply = await ask(process[0], body, content_type)
            if self.limits.shared:
                self.idle.put_nowait(process)
                return reply
        self.replace(process)
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
    await loop.sock_sendall(process, f"{json.dumps([content_type, len(body)])}\n".encode())
    await loop.sock_sendall(process, body)
    failed, size = REPLY_HEAD.unpack(await receive(process, REPLY_HEAD.size))
    if size > MB:  # a picture has taken it over
        raise EOFError
    return failed, await receive(process, size)


async def receive(process: socket.socket, size: int) -> bytes:
    """Receive `size` bytes from a decoder. Raises EOFError or OSError if it dies."""
    received = bytearray()
    while len(received) < size:
        chunk = await asyncio.get_running_loop().sock_recv(process, size - len(received))
        if not chunk:
            raise EOFError
        received += chunk
    return bytes(received)
