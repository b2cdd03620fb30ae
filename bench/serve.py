"""Race the packed service against what people would pick instead, all with the same photos.

    pip install --target bench/others fastapi litserve uvicorn
    python -m bench.serve saved_models/NAME.ckpt | tee bench/results/serve.txt
    python -m bench.serve saved_models/NAME.ckpt --former NAME:TAG   # what a change of ours costs

(and wrk, the load generator, from your system). The contenders serve the same weights with the same
number of workers: FastAPI and LitServe with torch, as their introductions have it; FastAPI with the
ONNX model that is packed, written as briefly as possible; and what saveToBento.py made of the
checkpoint, as its container runs it, with one worker. They take turns, so that whatever else the
machine does slows all of them. wrk, with one thread, sends the validation photos in turn over 8
kept connections; for the latency, over one connection, always the same one of 500 pixels. The
ceiling is what the cores do without HTTP: decoding and inference, in a process for each core.
"""

import argparse
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import bentoml
import numpy as np
import requests
import torch
from PIL import Image, ImageOps

from bench import machine
from simplestack.packing import bentos, local_server
from simplestack.serving import images
from simplestack.serving.cgroup import cores
from simplestack.serving.inference import OnnxModel
from simplestack.training import checkpoint, model

BENCH = Path(__file__).parent
OTHERS = BENCH / "others"
READY_WITHIN = 60  # seconds
SIDE = 500  # pixels, the longer side of most of the photos
LARGE = 12e6  # pixels of a phone's photo
NOTICEABLE = 0.02  # difference of a probability

Probabilities = list[float]

FASTAPI_TORCH = """
import io
from pathlib import Path
import torch
from fastapi import FastAPI, Request
from PIL import Image
from torchvision.transforms import v2
from simplestack.training import checkpoint, model

torch.set_num_threads({threads})
state = checkpoint.load(Path({checkpoint!r}))
network = model.Classifier(len(state.classes)).eval()
network.load_state_dict(state.best)
prepare = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
app = FastAPI()

@app.post("/predict")
async def predict(request: Request):
    image = Image.open(io.BytesIO(await request.body())).convert("RGB")
    with torch.inference_mode():
        logits = network(prepare(image).permute(1, 2, 0)[None])
    return dict(zip(state.classes, logits.softmax(1)[0].tolist()))
"""
LITSERVE_TORCH = """
import io
from pathlib import Path
import litserve
import torch
from fastapi import Request
from PIL import Image
from torchvision.transforms import v2
from simplestack.training import checkpoint, model

class Api(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads({threads})
        self.state = checkpoint.load(Path({checkpoint!r}))
        self.network = model.Classifier(len(self.state.classes)).eval()
        self.network.load_state_dict(self.state.best)
        self.prepare = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])

    def decode_request(self, request: Request):
        image = Image.open(request["image"].file).convert("RGB")
        return self.prepare(image).permute(1, 2, 0)[None]

    def predict(self, photo):
        with torch.inference_mode():
            return self.network(photo).softmax(1)[0].tolist()

    def encode_response(self, probabilities):
        return dict(zip(self.state.classes, probabilities))

if __name__ == "__main__":
    litserve.LitServer(Api(), accelerator="cpu", workers_per_device={workers}).run(
        port={port}, host="127.0.0.1", generate_client_file=False, num_api_servers=1
    )
"""
FASTAPI_ONNX = """
import io
import numpy as np
import onnxruntime
from fastapi import FastAPI, Request
from PIL import Image

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {threads}
session = onnxruntime.InferenceSession({model!r}, options)
app = FastAPI()

@app.post("/predict")
async def predict(request: Request):
    image = Image.open(io.BytesIO(await request.body())).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize([round(scale * side) for side in image.size], Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    photo = np.asarray(image.crop((left, top, left + 224, top + 224)))
    logits = session.run(["logits"], {{"photos": photo[None]}})[0][0]
    exp = np.exp(logits - logits.max())
    return dict(zip({classes!r}, (exp / exp.sum()).tolist()))
"""
UVICORN = "{python} -m uvicorn app:app --host 127.0.0.1 --port {port} --workers {workers} --no-access-log --log-level warning"  # noqa: E501


@dataclass
class Contender:
    """One that serves, and what was measured of it."""

    name: str
    command: str
    program: str = ""  # app.py
    saved_path: Path | None = None  # of a Bento
    ready: str = "/predict"  # answers, if only with an error, once it is ready
    form: bool = False  # wants the picture in a form
    url: str = ""
    workers: int = 1
    rates: list[float] = field(default_factory=list)  # requests/s, with several connections
    latencies: list[tuple[float, float]] = field(default_factory=list)  # p50 and p99 of one, ms
    memory: float = 0  # MB of all its processes, shared pages counted once


def contenders(path: Path, saved_path: Path, workers: int, former: Path | None) -> list[Contender]:
    """Name who takes part."""
    state = checkpoint.load(path)
    (packed,) = saved_path.glob("models/*/*/model.onnx")
    known = {
        "checkpoint": str(path.resolve()),
        "classes": state.classes,
        "model": str(packed),
        "threads": max(1, cores() // workers),
        "workers": workers,
        "python": sys.executable,
    }
    return [
        _contender("FastAPI + torch", UVICORN, FASTAPI_TORCH, known),
        _contender("LitServe + torch", "{python} app.py", LITSERVE_TORCH, known, form=True),
        _contender("FastAPI + ONNX", UVICORN, FASTAPI_ONNX, known),
        *([_bento("this stack before", former)] if former else []),
        _bento("this stack", saved_path),
    ]


def _bento(name: str, saved_path: Path) -> Contender:
    dockerfile = (saved_path / "Dockerfile").read_text()
    start = f"cd {saved_path} && {dockerfile.rpartition('CMD ')[2].strip()}"
    return Contender(name, start, saved_path=saved_path, ready="/readyz", url=_url())


def _contender(
    name: str, command: str, program: str, known: dict[str, object], *, form: bool = False
) -> Contender:
    url = _url()
    known = {**known, "port": int(url.rpartition(":")[2])}
    return Contender(
        name,
        command.format(**known),
        program.format(**known),
        form=form,
        url=url,
        workers=int(str(known["workers"])),
    )


def _url() -> str:
    return f"http://{local_server.HOST}:{local_server.free_port()}"


@contextmanager
def served(contender: Contender) -> Iterator[None]:
    """Start a contender, wait until it answers, and stop it in the end."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "BENTO_PATH": str(contender.saved_path or ""),
        "PORT": contender.url.rpartition(":")[2],
        "WEB_CONCURRENCY": str(contender.workers),
    }
    if contender.saved_path:  # the memory allocator's settings, as the container has them
        dockerfile = (contender.saved_path / "Dockerfile").read_text()
        environment |= dict(re.findall(r"^ARG (MALLOC_\w+)=(\w+)$", dockerfile, re.MULTILINE))
    if contender.program:
        environment["PYTHONPATH"] = f"{OTHERS}:{BENCH.parent}"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        Path(folder, "app.py").write_text(contender.program)
        server = subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                f"exec {contender.command}" if contender.program else contender.command,
            ],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + READY_WITHIN
            while not _answers(contender):
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"{contender.name} doesn't start:\n{log.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield
            contender.memory = machine.memory(server.pid) / 1e6
        finally:
            os.killpg(server.pid, signal.SIGTERM)  # LitServe leaves its workers behind
            server.wait()


def _answers(contender: Contender) -> bool:
    try:
        local_server.session().get(contender.url + contender.ready, timeout=5)
    except requests.ConnectionError:
        return False
    return True


def load(
    contender: Contender, photos: Path, connections: int, seconds: int, *options: str
) -> dict[str, float]:
    """Send photos from so many connections; return requests/s and latencies in ms."""
    script = ["-s", str(BENCH / "serve.lua"), f"{contender.url}/predict", "--", str(photos)]
    script += [*(["form"] if contender.form else []), *options]
    for duration in (1, seconds):  # first to warm up: memory of the idle may be swapped out
        command = ["wrk", "-t1", f"-c{connections}", f"-d{duration}s", "--timeout", "60s", *script]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    if measured["failed"]:
        sys.exit(f"{contender.name} failed {measured['failed']} requests")
    return measured


def photos_per_second(saved_path: Path, paths: list[Path], seconds: float) -> float:
    """Decode photos and run the packed model on them, in one thread and without HTTP."""
    (packed,) = saved_path.glob("models/*/*/model.onnx")
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(all_cores)})  # one thread for inference
    network = OnnxModel(packed)
    os.sched_setaffinity(0, all_cores)
    bodies = itertools.cycle([path.read_bytes() for path in paths])
    network(images.read(next(bodies))[None])
    count, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        network(images.read(next(bodies))[None])
        count += 1
    return count / (time.perf_counter() - began)


class Ceiling:
    """What the cores do without HTTP, in as many processes."""

    def __init__(self, saved_path: Path, paths: list[Path]) -> None:
        """Measure with the model of this Bento and these photos."""
        self.saved_path, self.paths = saved_path, paths
        self.rates: list[float] = []

    def measure(self, seconds: float) -> float:
        """Return photos per second."""
        with ProcessPoolExecutor(count := cores(), get_context("spawn")) as pool:
            ask = (self.saved_path, self.paths, seconds)
            turns = [pool.submit(photos_per_second, *ask) for _ in range(count)]
            return sum(turn.result() for turn in turns)


@contextmanager
def slow_client(contender: Contender) -> Iterator[None]:
    """Send requests that never end, a byte now and then, until each is given up on."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n"
    address = (local_server.HOST, int(contender.url.rpartition(":")[2]))
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            with suppress(ConnectionError), socket.create_connection(address) as connection:
                connection.sendall(head)
                while not ended.wait(0.2):
                    connection.sendall(b"x")

    threading.Thread(target=send).start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Keep one core busy with something else."""
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


def race(
    field: list[Contender], ceiling: Ceiling, lists: tuple[Path, Path], rounds: int, seconds: int
) -> None:
    """Let all take turns, with 8 connections for the rate and with 1 for the latency."""
    photos, one = lists
    for _ in range(rounds):
        ceiling.rates.append(ceiling.measure(seconds))
        for contender in field:
            contender.rates.append(load(contender, photos, 8, seconds)["rate"])
        for contender in field:
            alone = load(contender, one, 1, seconds)
            contender.latencies.append((alone["p50"], alone["p99"]))


def otherwise(contender: Contender, ceiling: Ceiling, photos: Path, seconds: int) -> None:
    """Compare with the ceiling under other conditions."""
    for name, connections, options, condition in (
        ("a connection for each request", 8, ["close"], nullcontext()),
        ("one slow client among eight", 7, [], slow_client(contender)),
        ("a busy neighbour", 8, [], busy_neighbour()),
    ):
        shares = []
        with condition:
            for _ in range(3):
                most = ceiling.measure(seconds)
                rate = load(contender, photos, connections, seconds, *options)["rate"]
                shares.append(rate / most)
        print(f"with {name}: {statistics.median(shares):.2f} of the ceiling")


def show(field: list[Contender], ceiling: Ceiling) -> None:
    """Print the table, and the ratios of the last contender to the others."""
    print("| | requests/s | memory, MB | p50, ms | p99, ms |\n|---|---|---|---|---|")
    for c in field:
        p50, p99 = (statistics.median(column) for column in zip(*c.latencies, strict=True))
        rate = statistics.median(c.rates)
        print(f"| {c.name} | {rate:.0f} | {c.memory:.0f} | {p50:.1f} | {p99:.1f} |")
    print(f"| ceiling, without HTTP | {statistics.median(ceiling.rates):.0f} | | | |\n")
    *others, ours = field
    share = statistics.median(a / b for a, b in zip(ours.rates, ceiling.rates, strict=True))
    print(f"{ours.name}: {share:.2f} of the ceiling")
    for other in others:
        # Round by round, as neighbours in time.
        ratio = statistics.median(a / b for a, b in zip(ours.rates, other.rates, strict=True))
        print(
            f"{ours.name} against {other.name}: {ratio:.2f} times the requests,"
            f" {ours.memory / other.memory:.2f} of the memory"
        )


def compare_large(url: str, state: checkpoint.Checkpoint, paths: list[Path]) -> None:
    """Enlarge photos to 12 megapixels; compare the time with that of the originals, and the answers
    with those to the same pictures decoded at full size, in float32 and as served. To judge the
    differences by, the latter get noise.
    """
    network = model.Classifier(len(state.classes)).eval()
    network.load_state_dict(state.best)
    times: list[float] = []
    answers: dict[str, list[list[Probabilities]]] = {"float32": [], "as served": []}
    for path in paths:
        large = enlarged(path)
        versions = [large, at_full_size(large), nudged(at_full_size(large))]
        photos = torch.from_numpy(np.stack([images.read(version) for version in versions]))
        with torch.inference_mode():
            answers["float32"].append(network(photos).softmax(1).tolist())
        asked = [_ask(url, version) for version in versions]
        answers["as served"].append([probabilities for probabilities, _ in asked])
        times.append(asked[0][1] / _ask(url, path.read_bytes())[1])
    print(f"12-megapixel JPEGs take {statistics.median(times):.2f} times as long (median).")
    for how, found in answers.items():
        reduced, full, noisy = np.array(found).swapaxes(0, 1)
        moved = np.abs(reduced - full).max(axis=1)
        print(
            f"Against decoding at full size, {how}: the same label for"
            f" {(reduced.argmax(1) == full.argmax(1)).sum()} of {len(paths)}, probabilities within"
            f" {moved.max():.4f}\n  (over {NOTICEABLE:g}: {(moved > NOTICEABLE).sum()}); one level"
            f" of noise in each pixel moves them by up to {np.abs(noisy - full).max():.4f}"
        )
    print()


def enlarged(path: Path) -> bytes:
    """Return a photo as a JPEG of 12 megapixels."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    scale = math.sqrt(LARGE / (image.width * image.height))
    size = round(scale * image.width), round(scale * image.height)
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def at_full_size(photo: bytes) -> bytes:
    """Decode a photo at full size and resize it as images.py does; return a PNG."""
    image = Image.open(io.BytesIO(photo))
    size = [images.RESIZE * side // min(image.size) for side in image.size]
    return _png(image.resize(size, Image.Resampling.BILINEAR))


def nudged(photo: bytes) -> bytes:
    """Change every value of a photo by -1, 0 or 1 at random; return a PNG."""
    pixels = np.asarray(Image.open(io.BytesIO(photo))).astype(int)
    noise = np.random.default_rng(0).integers(-1, 2, pixels.shape)
    return _png(Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _ask(url: str, body: bytes) -> tuple[Probabilities, float]:
    """Return the probabilities, and the least seconds of three tries."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        answer = local_server.session().post(f"{url}/predict", body, timeout=60).json()
        seconds.append(time.perf_counter() - started)
    return list(answer["probabilities"].values()), min(seconds)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="Race the packed service against others.")
    parser.add_argument("checkpoint", type=Path, help="that was packed last")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: data)")
    parser.add_argument("--former", help="another Bento of this stack, to take part, too")
    parser.add_argument("--workers", type=int, default=2, help="of each other (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--seconds", type=int, default=5, help="of each turn (default: 5)")
    args = parser.parse_args()
    if not shutil.which("wrk") or not OTHERS.exists():
        sys.exit("error: wrk or bench/others is missing: see the top of bench/serve.py")
    saved_path = Path(bentos.latest().path)
    state = checkpoint.load(args.checkpoint)
    paths = [args.data_dir / name for name in state.photos["val"]]
    print(machine.describe())
    print(
        f"{args.workers} workers each, this stack one;"
        f" wrk, {args.rounds} rounds of {args.seconds} s\n"
    )
    former = Path(bentoml.get(args.former).path) if args.former else None
    field = contenders(args.checkpoint, saved_path, args.workers, former)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        all_photos, one = Path(folder, "all"), Path(folder, "one")
        all_photos.write_text("".join(f"{path.resolve()}\n" for path in paths))
        one.write_text(next(f"{p.resolve()}\n" for p in paths if max(Image.open(p).size) == SIDE))
        for contender in field:
            stack.enter_context(served(contender))
        ceiling = Ceiling(saved_path, paths)
        race(field, ceiling, (all_photos, one), args.rounds, args.seconds)
        otherwise(field[-1], ceiling, all_photos, args.seconds)
        compare_large(field[-1].url, state, paths)
    show(field, ceiling)


if __name__ == "__main__":
    main()
