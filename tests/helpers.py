"""What the tests share: commands as people run them, servers, clients, pictures."""

import asyncio
import hashlib
import http.client
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pillow_heif
import pytest
import requests
from filelock import FileLock
from PIL import Image
from playwright.sync_api import Browser, Page
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from simplestack.packing import local_server
from simplestack.serving import images
from simplestack.serving.decoder_pool import Decoders
from simplestack.serving.inference import OnnxModel

PROJECT = Path(__file__).parent.parent
OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
COLOURS = {"ants": (90, 40, 20), "bees": (230, 180, 30), "wasps": (240, 230, 90)}
ODD_NAME = os.fsdecode("café".encode("latin-1"))  # as old archives unpack; not UTF-8
odd_names = pytest.mark.skipif(sys.platform == "darwin", reason="macOS has UTF-8 names only")


def run(*command, cwd=PROJECT, stdin=subprocess.DEVNULL, **environment: str):
    """Run a command as a person would, without a terminal; return what it printed."""
    words = [str(word) for word in command]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", **environment}
    options = {"cwd": cwd, "env": environment, "stdin": stdin}
    return subprocess.run(words, **options, capture_output=True, text=True, check=False)


def python(script: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    return run(sys.executable, PROJECT / script, *arguments, **options)


def error_line(result: subprocess.CompletedProcess) -> str:
    """Return the line with the error of a command that failed without a traceback."""
    assert result.returncode not in {0, None}, result.stdout
    assert "Traceback" not in result.stderr
    return next(line for line in result.stderr.splitlines() if "error: " in line)


def write_script(file: Path, script: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def code_block(language: str, part: str) -> str:
    """Return the block of code in the documentation of the static page that contains a part."""
    text = (PROJECT / "docs/static-page.md").read_text()
    (block,) = (x for x in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if part in x)
    return block


def container_command(bento: Path) -> str:
    return (bento / "Dockerfile").read_text().rpartition("\nCMD ")[2].strip()


@contextmanager
def gunicorn(bento: Path, under: tuple[str, ...] = (), **environment: str) -> Iterator[tuple]:
    """Serve a Bento by the Dockerfile's CMD, `under` another program; yield the URL and gunicorn.

    Its log is the file `log`.
    """
    port = local_server.free_port()
    url, command = f"http://127.0.0.1:{port}", (*under, "/bin/sh", "-c", container_command(bento))
    environment = {**os.environ, "BENTO_PATH": str(bento), "PORT": str(port), **environment}
    with tempfile.NamedTemporaryFile() as log:
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        server = subprocess.Popen(command, cwd=bento, env=environment, **streams)
        server.log = Path(log.name)
        try:
            wait_until_ready(url, lambda: "" if server.poll() is None else server.log.read_text())
            yield url, server
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            finally:
                server.kill()


def other_classes(model_file: Path, photo: Path, folder: Path) -> tuple[Path, dict[str, object]]:
    """Write a picture of noise to a folder; return its path, and metadata of other classes.

    Their threshold is between the similarities of a photo and of the noise; without examples.
    """
    noise = folder / "noise.png"
    drawn = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(drawn).save(noise)
    pixels = np.stack([images.read(path.read_bytes()) for path in (photo, noise)])
    high, low = OnnxModel(model_file)(pixels)[2].tolist()
    assert low < high
    unlike = {"threshold": (low + high) / 2, "validation_photos_unlike": 1 / 6}
    classes = ["Fourmis d’été", "蜜蜂"]
    return noise, {"classes": classes, "examples": [], "unlike": {**unlike, "chosen_by": "a test"}}


def wait_until_ready(url: str, failure: Callable[[], str]) -> None:
    """Wait until /readyz answers, for as long as `failure` says nothing."""

    def ready() -> bool:
        assert failure() == ""
        with suppress(requests.RequestException):
            return get(f"{url}/readyz", timeout=5).ok
        return False

    wait_until(ready, local_server.READY_WITHIN)


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until a condition holds; fail if it takes longer than anything but a hang."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, while the event loop goes on; fail after 30 s."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def idle_decoders(pool: Decoders) -> list[set[int]]:
    """Return the process ids of the decoders of each lane, when all are idle."""
    lanes = {pool.fast: pool.count, pool.rare: pool.count, pool.slow: 1}
    await until(lambda: all(lane.idle.qsize() == count for lane, count in lanes.items()))
    return [{number for _, number in lane.idle._queue} for lane in lanes]


def cache_folder(name: str, key: str) -> Path:
    """Return the folder in .pytest_cache for what a key makes; remove those of other keys."""
    root = PROJECT / ".pytest_cache" / name
    folder = root / hashlib.sha256(key.encode()).hexdigest()[:16]
    for other in root.glob("*/"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def make_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Let `make` fill a folder, unless an earlier run or another process has done so."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / "whole").touch()
    return folder


@contextmanager
def fresh_service() -> Iterator[None]:
    """Let BentoML import service.py again: its module keeps its model."""
    before = sys.modules.pop("service", None)
    try:
        yield
    finally:
        sys.modules.pop("service", None)
        if before:
            sys.modules["service"] = before


@contextmanager
def listening() -> Iterator[tuple[str, list[tuple[str, str, Message]]]]:
    """Answer 404 to everything; yield the URL, and method, path and headers of each request."""
    asked: list[tuple[str, str, Message]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append((self.command, self.path, self.headers))
            self.send_error(HTTPStatus.NOT_FOUND)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server, ThreadPoolExecutor() as pool:
        pool.submit(server.serve_forever, 0.01)
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


def send(method: str, url: str, **options) -> requests.Response:
    """Send a request, past any proxy."""
    with local_server.session() as client:
        return client.request(method, url, **{"timeout": 60, **options})


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=60)


def get(url: str, **options) -> requests.Response:
    return send("GET", url, **options)


def post(url: str, body: object, **options) -> requests.Response:
    """Post a body to /predict, without a content type of its own."""
    return send("POST", f"{url}/predict", data=body, **options)


def check_answer(answer: dict) -> None:
    """Check an answer of /predict against the contract."""
    assert list(answer) == ["label", "confidence", "probabilities", "similarity", "unlike"]
    assert 0 <= answer["similarity"] <= 1
    assert answer["unlike"] is None  # too few training photos
    assert list(answer["probabilities"]) == ["ants", "bees"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert answer["confidence"] == max(answer["probabilities"].values())
    assert answer["probabilities"][answer["label"]] == answer["confidence"]


def metrics(server: str | TestClient) -> Counter[tuple[str, ...]]:
    """Return the values at /metrics of a server, by its URL, or of the service in this process."""
    answer = get(f"{server}/metrics") if isinstance(server, str) else server.get("/metrics")
    samples = [x for family in text_string_to_metric_families(answer.text) for x in family.samples]
    return Counter({(s.name, *sorted(s.labels.values())): s.value for s in samples})


def load(url: str, photo: bytes, clients: int, done, *, keep_alive: bool = True) -> Counter[str]:
    """Post a photo from so many clients until `done()`; count the statuses, and errors by name.

    A client whose connection is refused ends; after any other error, it waits before it goes on.
    """
    outcomes: Counter[str] = Counter()

    def client(_: int) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        outcome = ""
        while outcome != ConnectionRefusedError.__name__ and not done():
            try:
                connection.request("POST", "/predict", photo)
                with connection.getresponse() as response:
                    response.read()
                outcome = str(response.status)
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
                time.sleep(0.1)  # until a server that has been killed has closed its sockets
            outcomes[outcome] += 1
            if not (keep_alive and outcome.isdigit()):
                connection.close()
        connection.close()

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return outcomes


@contextmanager
def watched_page(browser: Browser, url: str, forbidden: str = "") -> Iterator[Page]:
    """Yield a new page; errors, requests to elsewhere, and a forbidden text in its log fail."""
    problems: list[str] = []
    with browser.new_context() as context:
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        own = (url, "blob:", "data:")
        page.on("request", lambda r: r.url.startswith(own) or problems.append(r.url))
        page.on("console", lambda m: forbidden in m.text and problems.append(m.text))
        yield page
        assert problems == []  # before closing, which ends requests


LOWEST_CONTRAST = """() => {
  // of each text with what is painted behind it, as WCAG 2 defines it
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const luminance = (layers) => {
    for (canvas.fillStyle of layers) canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) =>
    e ? [...behind(e.parentElement), getComputedStyle(e).backgroundColor] : ["white"];
  const contrast = (e) => {
    const { fill, color } = getComputedStyle(e);
    const text = [...behind(e), e.closest("svg") ? fill : color];
    const [low, high] = [behind(e), text].map(luminance).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const shown = (e) =>
    e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return Math.min(...[...document.querySelectorAll("body *")].filter(shown).map(contrast));
}"""


def check_contrast(page: Page) -> None:
    assert page.evaluate(LOWEST_CONTRAST) >= 4.5  # WCAG's AA


def check_fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    if kind == "HEIF":  # its opener isn't registered: the project's own is to read it
        pillow_heif.from_pillow(image).save(file, enc_params={"preset": "ultrafast"}, **options)
    else:
        image.save(file, kind, **options)
    return file.getvalue()


def write_pictures(folder: Path, count: int, classes: tuple[str, ...] = ("ants", "bees")) -> None:
    """Write `count` one-coloured pictures per class; no two are the same."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        red, green, blue = COLOURS.get(name, (20, 20, 200))
        for i in range(count):
            colour = (red, green, (blue + 7 * i + len(folder.name)) % 256)
            Image.new("RGB", (240 + i, 230), colour).save(folder / name / f"{i}.png")


def split_folder(folder: Path, train_count: int = 5, val_count: int = 2) -> Path:
    write_pictures(folder / "train", train_count)
    write_pictures(folder / "val", val_count)
    return folder
