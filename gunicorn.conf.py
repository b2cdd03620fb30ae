"""How gunicorn serves the Bento in a container: `cd src && gunicorn --bind 0.0.0.0:5000`."""

import gc
import os
import shutil
import tempfile
from typing import Any

from gunicorn.workers import gasgi

# Only /tmp is writable there, and BentoML creates folders in its home. Several workers share their
# metrics in files; a single worker keeps them in memory.
scratch = tempfile.mkdtemp(prefix="bentoml-")
os.environ["BENTOML_HOME"] = scratch
several = int(os.environ.get("WEB_CONCURRENCY", "1")) > 1
if several:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = scratch

wsgi_app = "simplestack.serving.app:app()"
worker_class = "asgi"
asgi_lifespan = "on"  # it loads the model: a worker that can't must not serve
preload_app = True  # workers share the imports; an error in them ends gunicorn at once
reuse_port = True  # the kernel distributes connections among the workers
graceful_timeout = 9  # seconds: `docker stop` kills after 10, Heroku after 30
control_socket_disable = True  # it would be in the home directory
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "format": "{asctime}{levelname}{process}{message}",
            "style": "{",
            "datefmt": "%Y-%m-%dT%H:%M:%S%z",
            "rename_fields": {"asctime": "time", "levelname": "level"},
        }
    },
    "handlers": {"stdout": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"level": "INFO", "handlers": ["stdout"]},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
        "gunicorn.access": {"level": "CRITICAL"},  # Telemetry logs the requests
    },
}


class Protocol(gasgi.ASGIProtocol):  # type: ignore[misc]
    """Close a new connection that sends no whole head within 10 s.

    This belongs in gunicorn: version 27.0 starts its timer for idle connections only after an
    answer. It stops the timer when a head is complete.
    """

    def connection_made(self, transport: Any) -> None:
        """Start that timer at once."""
        super().connection_made(transport)
        self._keepalive_handle = self.worker.loop.call_later(10, self._keepalive_timeout)


gasgi.ASGIProtocol = Protocol


def pre_fork(_: Any, __: Any) -> None:
    """Keep the garbage collector from writing to, and so copying, the memory that workers share."""
    gc.freeze()


def child_exit(_: Any, worker: Any) -> None:
    """Remove the gauges of a worker that has ended."""
    if several:
        from prometheus_client import multiprocess  # noqa: PLC0415  # not before its folder is named

        multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(_: Any) -> None:
    """Remove the scratch folder."""
    shutil.rmtree(scratch, ignore_errors=True)
