"""Race the packed service against common alternatives, all with the same photos.

    pip install --target bench/others fastapi litserve uvicorn
    python -m bench.serve saved_models/NAME.ckpt | tee bench/results/serve.txt

(and wrk, the load generator, from your system). All serve the same weights: with two workers,
FastAPI and LitServe with torch, as their introductions have it, and FastAPI with the packed ONNX
model; with one worker, the Bento that was packed last, as its container runs it. They take turns,
so that other load on the machine slows all of them. wrk, with one thread, sends the validation
photos in turn over 8 kept connections; for the latency, it sends the same photo of 500 pixels over
one connection. The ceiling is decoding and inference without HTTP, in a process for each core.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from PIL import Image
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from bench import machine
from simplestack.packing import bentos, local_server
from simplestack.serving import images
from simplestack.serving.cgroup import cores
from simplestack.serving.inference import OnnxModel

BENCH = Path(__file__).parent
OTHERS = BENCH / "others"
WORKERS = 2  # of each other contender
ROUNDS = 5
SECONDS = 5  # of each turn
SIDE = 500  # pixels, the longer side of most of the photos

TORCH = """
from pathlib import Path
import torch
from PIL import Image
from torchvision.transforms import v2
from simplestack.training import checkpoint, model

def load():
    torch.set_num_threads(THREADS)
    state = checkpoint.load(Path(CHECKPOINT))
    network = model.Classifier(len(state.classes)).eval()
    network.load_state_dict(state.best)
    prepare = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])

    def predict(file):
        photo = prepare(Image.open(file).convert("RGB")).permute(1, 2, 0)
        with torch.inference_mode():
            return dict(zip(state.classes, network(photo[None]).softmax(1)[0].tolist()))

    return predict
"""
ONNX = """
import json
import numpy as np
import onnxruntime
from PIL import Image

def load():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(MODEL, options)
    labels = json.loads(session.get_modelmeta().custom_metadata_map["classes"])

    def predict(file):
        image = Image.open(file).convert("RGB")
        scale = 256 / min(image.size)
        size = [round(scale * side) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        photo = np.asarray(image.crop((left, top, left + 224, top + 224)))
        logits = session.run(["logits"], {"photos": photo[None]})[0][0]
        exp = np.exp(logits - logits.max())
        return dict(zip(labels, (exp / exp.sum()).tolist()))

    return predict
"""
FASTAPI = """
import io
from fastapi import FastAPI, Request

app, predict = FastAPI(), load()

@app.post("/predict")
async def post(request: Request):
    return predict(io.BytesIO(await request.body()))
"""
LITSERVE = """
import os
import litserve
from fastapi import Request

class Api(litserve.LitAPI):
    def setup(self, device):
        self.classify = load()

    def decode_request(self, request: Request):
        return request["image"].file

    def predict(self, file):
        return self.classify(file)

    def encode_response(self, answer):
        return answer

if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=WORKERS)
    server.run(port=int(os.environ["PORT"]), host="127.0.0.1", generate_client_file=False,
               num_api_servers=1)
"""
UVICORN = (
    f"exec python -m uvicorn app:app --port $PORT --workers {WORKERS} --no-access-log"
    " --log-level warning"
)
# Endless requests, a byte every 0.2 s, until the server closes the connection:
SLOW_CLIENT = """
import contextlib, socket, time
head = b"POST /predict HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 99999\\r\\n\\r\\n"
while True:
    with contextlib.suppress(ConnectionError), socket.create_connection({}) as connection:
        connection.sendall(head)
        while True:
            time.sleep(0.2)
            connection.sendall(b"x")
"""


@dataclass
class Contender:
    """A server and its measurements."""

    name: str
    port: int
    form: bool  # wants the picture in a form
    rates: list[float] = field(default_factory=list)  # requests/s over 8 connections
    latencies: list[tuple[float, float]] = field(default_factory=list)  # p50 and p99 of one, ms
    memory: float = 0  # MB of all its processes


@contextmanager
def served(
    name: str, command: str, folder: Path, form: bool = False, **environment: str
) -> Iterator[Contender]:
    """Start a server in a folder, wait until it answers, and finally stop it."""
    contender = Contender(name, local_server.free_port(), form)
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment["PORT"] = str(contender.port)
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            ["/bin/sh", "-c", command],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=log,
            start_new_session=True,
        )
        try:
            client = local_server.session()
            retry = Retry(60, backoff_factor=1, backoff_max=1)  # once a second, for a minute
            client.mount("http://", HTTPAdapter(max_retries=retry))
            client.get(f"http://{local_server.HOST}:{contender.port}/predict")
            yield contender
            contender.memory = machine.memory(server.pid) / 1e6
        finally:
            os.killpg(server.pid, signal.SIGTERM)  # LitServe leaves its workers behind
            server.wait()


def contenders(
    checkpoint: Path, bento: Path, model: Path, folder: Path, stack: ExitStack
) -> list[Contender]:
    """Start all contenders, the packed Bento last."""
    values = (str(checkpoint.resolve()), str(model), WORKERS, max(1, cores() // WORKERS))
    constants = f"CHECKPOINT, MODEL, WORKERS, THREADS = {values!r}"
    started = []
    for name, command, program in (
        ("FastAPI + torch", UVICORN, TORCH + FASTAPI),
        ("LitServe + torch", "exec python app.py", TORCH + LITSERVE),
        ("FastAPI + ONNX", UVICORN, ONNX + FASTAPI),
    ):
        (folder / name).mkdir()
        (folder / name / "app.py").write_text(constants + program)
        path, form = f"{OTHERS}:{BENCH.parent}", name.startswith("LitServe")
        started.append(served(name, command, folder / name, form, PYTHONPATH=path))
    dockerfile = (bento / "Dockerfile").read_text()
    command = dockerfile.rpartition("CMD ")[2]
    allocator = dict(re.findall(r"^ARG (MALLOC_\w+)=(\w+)$", dockerfile, re.MULTILINE))
    started.append(served("this stack", command, bento, BENTO_PATH=str(bento), **allocator))
    return [stack.enter_context(server) for server in started]


def load(
    contender: Contender, photos: Path, connections: int, option: str = ""
) -> dict[str, float]:
    """Send photos over so many connections; return requests/s and latencies in ms."""
    url = f"http://{local_server.HOST}:{contender.port}/predict"
    script = ["-s", str(BENCH / "serve.lua"), url, "--"]
    script += [str(photos), "form" if contender.form else option]
    for seconds in (1, SECONDS):  # first to warm up: idle memory may be swapped out
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", *script]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    if measured["failed"]:
        sys.exit(f"error: {contender.name} failed {measured['failed']} requests")
    return measured


def photos_per_second(model: Path, paths: list[Path]) -> float:
    """Decode photos and run the packed model on them, in one thread and without HTTP."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(all_cores)})  # one thread for inference
    network = OnnxModel(model)
    os.sched_setaffinity(0, all_cores)
    bodies = itertools.cycle([path.read_bytes() for path in paths])
    network(images.read(next(bodies))[None])
    count, started = 0, time.perf_counter()
    while time.perf_counter() < started + SECONDS:
        network(images.read(next(bodies))[None])
        count += 1
    return count / (time.perf_counter() - started)


def ceiling(model: Path, paths: list[Path]) -> float:
    """Return the photos per second without HTTP, in a process for each core."""
    with ProcessPoolExecutor(count := cores(), get_context("spawn")) as pool:
        return sum(pool.map(photos_per_second, [model] * count, [paths] * count))


def median_ratio(values: list[float], others: list[float]) -> float:
    """Return the median of the ratios of each round, whose values are close in time."""
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def show(field: list[Contender], ceilings: list[float]) -> None:
    """Print the table, and the ratios of the last contender to the others."""
    print("| | requests/s | memory, MB | p50, ms | p99, ms |\n|---|---|---|---|---|")
    for c in field:
        p50, p99 = (statistics.median(column) for column in zip(*c.latencies, strict=True))
        rate = statistics.median(c.rates)
        print(f"| {c.name} | {rate:.0f} | {c.memory:.0f} | {p50:.1f} | {p99:.1f} |")
    print(f"| ceiling, without HTTP | {statistics.median(ceilings):.0f} | | | |\n")
    *others, ours = field
    print(f"{ours.name}: {median_ratio(ours.rates, ceilings):.2f} of the ceiling")
    for other in others:
        ratio = median_ratio(ours.rates, other.rates)
        print(f"{ours.name} against {other.name}: {ratio:.2f} times the requests/s")


def main() -> None:
    """Race with 8 connections and with 1, then compare with the ceiling under other conditions."""
    parser = argparse.ArgumentParser(description="Race the packed service against others.")
    parser.add_argument("checkpoint", type=Path, help="the one that was packed last")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: data)")
    args = parser.parse_args()
    if not shutil.which("wrk") or not OTHERS.exists():
        sys.exit("error: wrk or bench/others is missing: see the top of bench/serve.py")
    bento = Path(bentos.latest().path)
    (model,) = bento.glob("models/*/*/model.onnx")
    paths = sorted(args.data_dir.resolve().glob("val/*/*"))
    print(machine.describe())
    print(f"{WORKERS} workers each, this stack one; wrk, {ROUNDS} rounds of {SECONDS} s\n")
    ceilings = []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        (folder / "all").write_text("".join(f"{path}\n" for path in paths))
        (folder / "one").write_text(
            next(f"{p}\n" for p in paths if max(Image.open(p).size) == SIDE)
        )
        field = contenders(args.checkpoint, bento, model, folder, stack)
        for _ in range(ROUNDS):
            ceilings.append(ceiling(model, paths))
            for contender in field:
                contender.rates.append(load(contender, folder / "all", 8)["rate"])
            for contender in field:
                latency = load(contender, folder / "one", 1)
                contender.latencies.append((latency["p50"], latency["p99"]))
        slow = SLOW_CLIENT.format((local_server.HOST, field[-1].port))
        conditions: list[tuple[str, int, str, AbstractContextManager[None]]] = [
            ("a connection for each request", 8, "close", nullcontext()),
            ("one slow client among eight", 7, "", machine.beside(slow)),
            ("a busy neighbour", 8, "", machine.beside(machine.BUSY)),
        ]
        for name, connections, option, condition in conditions:
            with condition:
                shares = [
                    load(field[-1], folder / "all", connections, option)["rate"]
                    / ceiling(model, paths)
                    for _ in range(3)
                ]
            print(f"with {name}: {statistics.median(shares):.2f} of the ceiling")
    show(field, ceilings)


if __name__ == "__main__":
    main()
