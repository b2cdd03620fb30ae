"""What gunicorn runs in the container: the app, and the worker that serves it."""

import asyncio
import contextlib
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
        self.loop: asyncio.AbstractEventLoop = worker.loop
        self.listener = listener
        self.entering: set[asyncio.Task[None]] = set()
        self.pause = self.loop.call_soon(self._listen)

    def _listen(self) -> None:
        self.loop.add_reader(self.listener, self._accept)

    def _accept(self) -> None:
        seconds = min(LEAVE * self.worker.nr_conns, MOST_LEFT)
        try:
            self._take_in()
        except BlockingIOError:  # another worker was quicker
            return
        except OSError as error:  # too many open files, say
            self.worker.log.warning("a connection can't be taken in: %s", error)
            seconds = 1
        self.loop.remove_reader(self.listener)
        self.pause = self.loop.call_later(seconds, self._listen)

    def _take_in(self) -> None:
        connection, _ = self.listener.accept()
        task = self.loop.create_task(self.worker.serve(connection))
        self.entering.add(task)
        task.add_done_callback(self.entering.discard)

    def close(self) -> None:
        """Stop; whoever waits still gets in."""
        self.pause.cancel()
        self.loop.remove_reader(self.listener)
        with contextlib.suppress(BlockingIOError):  # nobody waits any more
            while True:
                self._take_in()
        self.listener.close()  # at once, as it resets who has come since

    async def wait_closed(self) -> None:
        """Wait until the last are in: gunicorn counts them then, and waits for their requests."""
        await asyncio.gather(*self.entering)


class Worker(ASGIWorker):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's worker, which takes no more than its part, and loses nobody when it is stopped."""

    def _setup_event_loop(self) -> None:
        super()._setup_event_loop()

        async def create_server(*_: Any, sock: socket.socket, **__: Any) -> Acceptor:
            return Acceptor(self, sock)

        self.loop.create_server = create_server

    async def serve(self, connection: socket.socket) -> None:
        """Begin to serve a connection."""
        await self.loop.connect_accepted_socket(lambda: ASGIProtocol(self), connection)

    async def _shutdown(self) -> None:
        await asyncio.sleep(SETTLE)
        await super()._shutdown()
