"""What gunicorn runs in the container: the app, and the worker that serves it."""

import asyncio
import ctypes
import os
import socket
import struct
from typing import Any

import bentoml
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers.gasgi import ASGIWorker

LEAVE, MOST_LEFT = 0.001, 0.005  # seconds, for each connection that a worker has; at most
SETTLE = 0.3  # seconds in which a handshake that has begun comes to its end
SO_ATTACH_FILTER = 26  # of Linux; Python has no name for it
# A socket filter in classic BPF, as in Linux's Documentation/networking/filter.rst. Accepted
# connections inherit it, and don't mind: nobody sends SYN within a connection.
NO_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the flags of the TCP header
        (0x45, 0, 1, 0x02),  # if SYN is set
        (0x06, 0, 0, 0),  # drop the packet
        (0x06, 0, 0, 0xFFFFFFFF),  # else take it, whole
    )
)


def app() -> Any:
    """Load the Bento from BENTO_PATH, with its own copy of the model, and give its ASGI app."""
    service: bentoml.Service[Any] = bentoml.load(os.environ["BENTO_PATH"])
    asgi = service.to_asgi()
    # Its timer for each request lives for a minute, however soon the answer comes: with many
    # requests they add up to megabytes. The gate has its own, which end with the request.
    asgi.user_middleware = [m for m in asgi.user_middleware if m.cls is not TimeoutMiddleware]
    return asgi


def begin_no_more(listener: socket.socket) -> None:
    """Let a listening TCP socket complete the handshakes under way, and begin no new ones.

    To close it resets who isn't accepted yet, and until then others keep coming: only after this
    can all be accepted and none lost. Who comes later tries again a second later, and is refused
    by then. Raises OSError where the kernel can't.
    """
    code = ctypes.create_string_buffer(NO_SYN)
    program = struct.pack("HP", len(NO_SYN) // 8, ctypes.addressof(code))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class Acceptor:
    """Takes in connections for a worker, in place of asyncio's server: one at a time.

    That takes all that wait at once, so that the worker which wakes first has all of them and the
    others none. Here, the more a worker has, the longer it leaves the next one to the others.
    """

    def __init__(self, worker: "Worker", listener: socket.socket) -> None:
        """Start."""
        self.worker = worker
        self.listener = listener
        self.task = worker.loop.create_task(self._accept())

    async def _accept(self) -> None:
        loop = self.worker.loop
        while True:
            try:
                connection, _ = await loop.sock_accept(self.listener)
                await self.worker.take_in(connection)
            except OSError as error:  # it hung up already, or there are too many open files
                self.worker.log.warning("a connection can't be taken in: %s", error)
                await asyncio.sleep(1)
            await asyncio.sleep(min(LEAVE * self.worker.nr_conns, MOST_LEFT))

    def close(self) -> None:
        """Stop."""
        self.task.cancel()
        self.listener.close()

    async def wait_closed(self) -> None:
        """Wait for nothing: the worker itself waits for its connections."""


class Worker(ASGIWorker):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's worker, which takes no more than its part, and loses nobody when it is stopped."""

    def _setup_event_loop(self) -> None:
        super()._setup_event_loop()

        async def create_server(*_: Any, sock: socket.socket, **__: Any) -> Acceptor:
            return Acceptor(self, sock)

        self.loop.create_server = create_server

    async def take_in(self, connection: socket.socket) -> None:
        """Begin to serve a connection."""
        await self.loop.connect_accepted_socket(lambda: ASGIProtocol(self), connection)

    async def _shutdown(self) -> None:
        await asyncio.sleep(SETTLE)
        for listener in self.sockets:
            try:
                while True:
                    await self.take_in(listener.sock.accept()[0])
            except BlockingIOError:  # nobody waits any more
                continue
        await asyncio.sleep(SETTLE)  # gunicorn doesn't count who was accepted a moment ago
        await super()._shutdown()
