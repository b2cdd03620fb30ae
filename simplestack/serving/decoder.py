"""Decode untrusted pictures in processes with limits of memory and CPU time.

    python -m simplestack.serving.decoder 3

forks a decoder for each socket that arrives through file descriptor 3. It loads only Pillow,
pillow-heif, NumPy and a parser of forms, so that a decoder is small and starts in milliseconds.

A decoder first says hello. A request is a line of JSON, `[content type, size]`, and a body of that
size. The reply is a head and either the pixels, 224×224×3 uint8, followed by `top_k` if the body
has it, or an error as JSON.

A picture may make its decoder run code of the picture's author. So a decoder has nothing but its
socket: no settings, no other file, and system calls for computing only. It can lie about its own
picture, and about later ones if it gets any: the libraries for rare formats, which are newer and
less tested, see one picture in a process.
"""

import json
import logging
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from encodings import utf_8_sig, utf_16_be, utf_16_le, utf_32_be, utf_32_le
from pathlib import Path
from typing import NamedTuple, NoReturn

from PIL import ImageCms

from simplestack.serving import errors, images, sandbox
from simplestack.serving.body import unpack
from simplestack.serving.formats import RARE

# Pillow and json import these when a LAB picture or JSON in such an encoding needs them.
LOADED = (ImageCms, utf_8_sig, utf_16_be, utf_16_le, utf_32_be, utf_32_le)
HELLO = struct.Struct("!Q?")  # the decoder's process id, and whether its system calls are filtered
REPLY_HEAD = struct.Struct("!?Q")  # whether the reply is an error, and its length in bytes
MB = 1_000_000
TOO_HEAVY = (errors.TooLargeError.__name__, images.TOO_HEAVY)
TOO_HEAVY_REPLY = json.dumps(TOO_HEAVY).encode()
MAX_SECONDS = 60  # of real time for a picture


class Limits(NamedTuple):
    """The limits of a decoder, for one picture."""

    seconds: float  # of CPU time
    memory: int  # bytes beyond those of an idle decoder
    priority: int  # the argument of os.nice
    max_pixels: int
    wait: float = MAX_SECONDS  # seconds of real time, which the worker enforces
    shared: bool = False  # among pictures of common formats; others decode one picture


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
            except OSError:  # too many processes: the closed socket tells the worker
                continue
            if forked == 0:
                control.close()
                serve(worker, Limits(*json.loads(limits)))
                os._exit(0)


def serve(worker: socket.socket, limits: Limits) -> None:
    """Decode one body after another until the worker closes the socket."""
    os.nice(limits.priority)
    logging.disable()  # the parser of forms logs every mistake in them
    os.dup2(1, 2)  # nowhere: libtiff's messages, and what a picture would forge
    if sys.platform == "linux":
        with suppress(OSError):  # some hosts close /proc; the limit below holds there too
            Path("/proc/self/oom_score_adj").write_text("1000")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + limits.memory,) * 2)
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    worker.sendall(HELLO.pack(os.getpid(), sandbox.enter()))
    with worker.makefile("rwb") as stream:
        while line := stream.readline():
            content_type, size = json.loads(line)
            body = stream.read(size)
            signal.setitimer(signal.ITIMER_PROF, limits.seconds)  # its signal kills
            failed, reply = decode(body, content_type, limits)
            del body  # or it would stay in memory beside the next one
            signal.setitimer(signal.ITIMER_PROF, 0)
            stream.write(REPLY_HEAD.pack(failed, len(reply)) + reply)
            stream.flush()


def decode(body: bytes, content_type: str, limits: Limits) -> tuple[bool, bytes]:
    """Decode the picture in a body; return whether that failed, and the reply's bytes."""
    try:
        picture, top_k = unpack(body, content_type)
        if limits.shared and RARE.match(picture):
            raise errors.RareFormatError
        return False, images.read(picture, limits.max_pixels).tobytes() + top_k
    except MemoryError:
        return True, TOO_HEAVY_REPLY
    except errors.ImageError as error:
        return True, json.dumps([type(error).__name__, str(error)]).encode()
    except Exception:  # a mistake in the code above, for the worker's log
        return True, json.dumps([*TOO_HEAVY, traceback.format_exc()]).encode()


if __name__ == "__main__":
    fork_decoders(socket.socket(fileno=int(sys.argv[1])))
