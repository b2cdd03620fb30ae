"""How gunicorn serves the Bento in a container: `cd src && gunicorn --bind 0.0.0.0:5000`."""

import gc
import os
import signal
import tempfile
from typing import Any

# Only /tmp is writable there: BentoML makes folders in its home, and every worker keeps its
# counters for /metrics in a file.
scratch = tempfile.mkdtemp(prefix="bentoml-")
os.environ["BENTOML_HOME"] = os.environ["PROMETHEUS_MULTIPROC_DIR"] = scratch

wsgi_app = "simplestack.serving.app:app()"
worker_class = "simplestack.serving.app.Worker"
asgi_lifespan = "on"  # the model is loaded then: who can't load it must not serve
preload_app = True  # workers share the memory of what is imported; a bad setting stops at once
graceful_timeout = 9  # seconds: `docker stop` kills after 10, Heroku after 30
control_socket_disable = True  # it would be in the home directory


def when_ready(arbiter: Any) -> None:
    """Prepare what all workers share, before the first of them is forked."""
    from simplestack.serving import app  # noqa: PLC0415  # after BentoML's folders are named

    gc.collect()
    gc.freeze()  # or the garbage collector would touch, and so copy, all that they share

    def stop(number: int, frame: Any) -> None:
        try:
            for listener in arbiter.LISTENERS:
                app.begin_no_more(listener.sock)
        except OSError as error:
            arbiter.log.warning("who connects just now may be reset: %s", error)
        arbiter.signal(number, frame)

    signal.signal(signal.SIGTERM, stop)


def child_exit(_: Any, worker: Any) -> None:
    """Forget the gauges of a worker that has ended."""
    from prometheus_client import multiprocess  # noqa: PLC0415  # not before its folder is named

    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
