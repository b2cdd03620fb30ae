"""Throw mutated images and other bodies at the packed service, and see that nothing breaks.

    make fuzz                                  # 20,000 requests to what was packed last
    PYTHONPATH=. python tests/fuzz.py 500 7     # requests and seed

Every answer must be a prediction or a clear 4xx. The worker must live on, its memory must not grow,
and the server must not open a single connection: strace, which sees each attempt, keeps watch.
"""

import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import requests
from helpers import encode, gunicorn, send
from PIL import Image
from tqdm import tqdm

from simplestack import cli
from simplestack.packing import bentos
from simplestack.training import sample

CLIENTS = 8
ANSWERS = {200, 400, 413, 415}
MAX_GROWTH = 16 * 2**20  # bytes of a worker that may differ by what malloc keeps
SETTINGS = {"MAX_BYTES": "200000", "MAX_PIXELS": "1000000"}  # within reach of a mutated header
TRACE = ("strace", "-D", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect")
FORMATS = (  # with their modes
    "JPEG:RGB JPEG:L JPEG:CMYK MPO:RGB PNG:RGB PNG:P PNG:RGBA PNG:1 PNG:I;16 WEBP:RGB WEBP:RGBA"
    " AVIF:RGB HEIF:RGB HEIF:RGBA HEIF:I;16 GIF:P BMP:RGB TIFF:CMYK TIFF:I;16B TIFF:F PPM:RGB PPM:1"
)
OTHERS = (
    *(b"", b"http://127.0.0.1:9/x.jpg", b"https://example.com/cat.png", b"file:///etc/passwd"),
    *(b'{"image": "http://127.0.0.1:9/x.jpg"}', b"[]", b"null", b"%PDF-1.7", b"<svg/>", b"PK\3\4"),
    *(b"a.jpg", b"iVBORw0KGgo" * 20, b"data:image/png;base64,iVBORw0KGgo="),
    *(b"<?xml version='1.0'?><svg><image href='http://127.0.0.1:9/'/></svg>", b"\xff\xd8\xff"),
)
CONTENT_TYPES = (
    *("image/*", "image/jpeg", "image/png", "application/json", "text/plain", "x", ""),
    *("application/octet-stream", "application/vnd.bentoml+pickle", "multipart/form-data"),
    *("application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
)
Request = tuple[str, bytes, dict[str, str]]  # query, body and headers


def encoded() -> list[bytes]:
    """Encode a drawn picture in every format and mode."""
    image = sample.picture("bees", random.Random(0)).resize((120, 90))
    turned = Image.Exif()
    turned[0x0112] = 6
    files = [encode(image, "JPEG", exif=turned, progressive=True, subsampling="4:4:4")]
    for kind, mode in (name.split(":") for name in FORMATS.split()):
        grey = mode[0] in "IF"  # which Pillow makes of grey only
        files.append(encode((image.convert("L") if grey else image).convert(mode), kind))
    return files


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Damage an image a few times, in the ways in which files and attackers do."""
    body = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(body) + 1) if rng.random() < 0.5 else rng.randrange(64)
        length = rng.choice((1, 2, 4, 32, 500))
        part, new = {
            0: (slice(at, at + 1), rng.randbytes(1)),
            1: (slice(at, at + length), rng.choice((b"\0", b"\xff", b"\x7f")) * length),
            2: (slice(at, at + length), b""),
            3: (slice(at, at), body[at : at + length]),
            4: (slice(at, None), other[at:]),
            5: (slice(at, None), b""),
        }[rng.randrange(6)]
        body[part] = new
    return bytes(body)


def generate(count: int, seed: int) -> Iterator[Request]:
    rng, files = random.Random(seed), encoded()
    for _ in range(count):
        body = mutate(rng.choice(files), rng.choice(files), rng)
        if rng.random() < 0.1:
            body = rng.choice(
                (*OTHERS, rng.randbytes(rng.randrange(1000)), 4 * body, *[99 * body] * 4)
            )
        content_type = rng.choice(CONTENT_TYPES) if rng.random() < 0.5 else "image/*"
        if rng.random() < 0.2:
            content_type = "multipart/form-data; boundary=x"
            body = mutate(form(body, rng), form(files[0], rng), rng)
        yield rng.choice(("", "?explain=1", "?explain=x")), body, {"Content-Type": content_type}


def form(body: bytes, rng: random.Random) -> bytes:
    """Wrap a body as `curl -F` does, or nearly so."""
    name = rng.choice((b'name="image"; filename="a.jpg"', b'name="image"', b'filename="a"', b""))
    return b"--x\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n--x--\r\n" % (name, body)


def ask(url: str, request: Request) -> tuple[int, str]:
    """Send a request; return its status, and what is wrong with the answer."""
    query, body, headers = request
    try:
        response = send("POST", f"{url}/predict{query}", data=body, headers=headers)
    except requests.RequestException as error:
        return 0, f"{error!r} to {body[:60]!r} {headers}"
    return response.status_code, problem(response, request)


def problem(response: requests.Response | httpx.Response, request: Request) -> str:
    """Return what is wrong with an answer, "" if nothing."""
    key = "label" if response.status_code == 200 else "error"
    with suppress(ValueError):
        if response.status_code in ANSWERS and key in response.json():
            return ""
    return f"{response} {response.text[:200]!r} to {request[1][:60]!r} {request[2]}"


def worker_of(server: subprocess.Popen) -> psutil.Process:
    (worker,) = psutil.Process(server.pid).children()
    return worker


def fuzz(saved_path: Path, count: int, seed: int) -> tuple[Counter[int], list[str]]:
    """Send requests to a Bento; return how often each status was answered, and what is wrong."""
    statuses, wrong = Counter(), []
    with (
        tempfile.NamedTemporaryFile("r") as trace,
        gunicorn(saved_path, under=(*TRACE, "-o", trace.name), **SETTINGS) as (url, server),
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        worker, early = worker_of(server), 0
        started = len(Path(trace.name).read_text())
        answers = pool.map(lambda request: ask(url, request), generate(count, seed))
        for i, (status, problem) in enumerate(tqdm(answers, total=count, disable=None)):
            statuses[status] += 1
            wrong += [problem] if problem else []
            if i == count // 4:
                early = worker.memory_info().rss
        if worker_of(server) != worker:
            wrong.append("the worker has crashed")
        if (growth := worker_of(server).memory_info().rss - early) > MAX_GROWTH:
            wrong.append(f"the worker has grown by {growth // 1024} KiB since the first quarter")
        lines = Path(trace.name).read_text()[started:].splitlines()
        wrong += [line for line in lines if "connect(" in line]  # others tell of killed decoders
    return statuses, wrong


def main() -> None:
    cli.start("bentoml")
    count, seed = map(int, sys.argv[1:] or (20_000, 0))
    if not shutil.which("strace"):
        sys.exit("error: strace is missing: apt install strace")
    statuses, wrong = fuzz(Path(bentos.latest().path), count, seed)
    print(f"answers: {dict(statuses)}\nwrong: {len(wrong)}", *wrong[:10], sep="\n  ")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
