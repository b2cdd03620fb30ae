"""How gunicorn serves the Bento in a container: `cd src && gunicorn --bind 0.0.0.0:5000`."""

import gc
import os
import shutil
import tempfile
from typing import Any

# Only /tmp is writable there, and BentoML makes folders in its home. Several workers need files for
# their counters, too; a single one does without, as a full disk kills who writes to such a file.
scratch = tempfile.mkdtemp(prefix="bentoml-")
os.environ["BENTOML_HOME"] = scratch
several = int(os.environ.get("WEB_CONCURRENCY", "1")) > 1
if several:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = scratch

wsgi_app = "simplestack.serving.app:app()"
worker_class = "asgi"
asgi_lifespan = "on"  # the model is loaded then: who can't load it must not serve
preload_app = True  # workers share what is imported, and what can't be loaded stops at once
reuse_port = True  # with several workers, the kernel shares out the connections
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
        "gunicorn.access": {"level": "CRITICAL"},  # Telemetry's lines are in its place
    },
}


def pre_fork(_: Any, __: Any) -> None:
    """Keep the garbage collector from writing to what workers share, which would copy it."""
    gc.freeze()


def child_exit(_: Any, worker: Any) -> None:
    """Forget the gauges of a worker that has ended."""
    if several:
        from prometheus_client import multiprocess  # noqa: PLC0415  # not before its folder is named

        multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(_: Any) -> None:
    """Leave nothing behind."""
    shutil.rmtree(scratch, ignore_errors=True)
