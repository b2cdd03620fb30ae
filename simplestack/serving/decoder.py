"""Decodes untrusted pictures in processes with limits of memory and CPU time.

    python -m simplestack.serving.decoder 3

forks one for each socket that arrives through file descriptor 3. It loads nothing but Pillow,
pillow-heif, NumPy and a parser of forms, so that a decoder is small and starts in milliseconds.

A request is a line of JSON, `[content type, size]`, and a body of that size. The reply is a HEAD,
and either pixels, 224×224×3 uint8, with a query string behind them, or an error as JSON.
"""

import json
import logging
import os
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from simplestack.serving import errors, images
from simplestack.serving.body import unpack

HEAD = struct.Struct("!?Q")  # of a reply: whether it is an error, and its length in bytes
MB = 1_000_000
MAX_SECONDS = 60  # for a picture, even if it takes no CPU time


class Limits(NamedTuple):
    """The limits of a decoder, for one picture."""

    seconds: float  # of CPU time
    memory: int  # bytes, beyond what it has at rest
    priority: int  # as for os.nice
    max_pixels: int


def fork_decoders(control: socket.socket) -> NoReturn:
    """Fork a decoder for each socket that arrives; end all of them when no more can arrive."""
    # Some hosts send signals to all processes; decoders end when the worker closes their sockets.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    while True:
        limits, sockets, _, _ = socket.recv_fds(control, 1000, 1)
        if not sockets:
            os.killpg(0, signal.SIGKILL)
        with socket.socket(fileno=sockets[0]) as worker:
            try:
                forked = os.fork()
            except OSError:  # too many processes: the worker sees that its socket is closed
                continue
            if forked == 0:
                control.close()
                serve(worker, Limits(*json.loads(limits)))
                os._exit(0)


def serve(worker: socket.socket, limits: Limits) -> None:
    """Decode one body after another until the worker closes the socket."""
    os.nice(limits.priority)
    logging.disable()  # the parser of forms logs every mistake in them
    sys.stderr = os.fdopen(os.dup(2), "w")  # for a traceback; libtiff's complaints go nowhere
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if sys.platform == "linux":
        with suppress(OSError):  # some hosts close /proc; the limit below holds there too
            Path("/proc/self/oom_score_adj").write_text("1000")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + limits.memory,) * 2)
    with worker.makefile("rwb") as stream:
        while line := stream.readline():
            content_type, size = json.loads(line)
            body = stream.read(size)
            signal.setitimer(signal.ITIMER_PROF, limits.seconds)  # whose signal kills
            signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
            failed, reply = decode(body, content_type, limits)
            del body  # or it would be held beside the next
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            stream.write(HEAD.pack(failed, len(reply)) + reply)
            stream.flush()


def decode(body: bytes, content_type: str, limits: Limits) -> tuple[bool, bytes]:
    """Return whether the picture in a body can't be decoded, and the reply to that."""
    try:
        picture, query = unpack(body, content_type)
        return False, images.read(picture, limits.max_pixels).tobytes() + query
    except MemoryError:
        error: errors.ImageError = errors.TooLargeError(images.TOO_HEAVY)
    except errors.ImageError as caught:
        error = caught
    return True, json.dumps([type(error).__name__, str(error)]).encode()


if __name__ == "__main__":
    fork_decoders(socket.socket(fileno=int(sys.argv[1])))
