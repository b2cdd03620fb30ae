"""What gunicorn runs in the container: the app, and the worker that serves it."""

import os
from typing import Any

import bentoml
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers.gasgi import ASGIWorker


def app() -> Any:
    """Load the Bento from BENTO_PATH, with its own copy of the model, and give its ASGI app."""
    service: bentoml.Service[Any] = bentoml.load(os.environ["BENTO_PATH"])
    return service.to_asgi()


class Worker(ASGIWorker):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's worker, which when it is stopped also serves who waits to be accepted."""

    async def _shutdown(self) -> None:
        for listener in self.sockets:
            try:
                while True:
                    connection, _ = listener.sock.accept()
                    await self.loop.connect_accepted_socket(lambda: ASGIProtocol(self), connection)
            except BlockingIOError:  # nobody waits any more
                continue
        await super()._shutdown()
