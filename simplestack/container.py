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


class Worker(ASGIWorker):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's worker, which takes no more than its part, and loses nobody when it is stopped."""

    def _setup_event_loop(self) -> None:
        super()._setup_event_loop()
        create_server = self.loop.create_server

        async def one_at_a_time(*arguments: Any, sock: socket.socket, **options: Any) -> Any:
            # By its `backlog` asyncio also means how many connections to accept at once: all that
            # wait, so that the worker which wakes first has all of them and the others none.
            server = await create_server(*arguments, sock=sock, backlog=1, **options)
            sock.listen(self.cfg.backlog)
            return server

        self.loop.create_server = one_at_a_time

    async def _shutdown(self) -> None:
        await asyncio.sleep(SETTLE)
        for listener in self.sockets:
            try:
                while True:
                    connection, _ = listener.sock.accept()
                    await self.loop.connect_accepted_socket(lambda: ASGIProtocol(self), connection)
            except BlockingIOError:  # nobody waits any more
                continue
        await asyncio.sleep(SETTLE)  # gunicorn doesn't count who was accepted a moment ago
        await super()._shutdown()
