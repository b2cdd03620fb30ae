"""Measure the time and the effect of decoding large JPEGs at a fraction of their size.

    python -m bench.large saved_models/NAME.ckpt

The validation photos are enlarged to 12 megapixels. The time is that of the packed service, against
the original photos. The answers are compared with those to the same pictures decoded at full size,
in float32 and as served. The effect of noise in them is for comparison.
"""

import argparse
import io
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from bench import machine
from simplestack.packing import bentos, local_server
from simplestack.serving import images
from simplestack.training import checkpoint, model

PIXELS = 12e6  # of a phone's photo


def enlarged(path: Path) -> bytes:
    """Return a photo as a JPEG of 12 megapixels."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    scale = math.sqrt(PIXELS / (image.width * image.height))
    size = round(scale * image.width), round(scale * image.height)
    return encode(image.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=90)


def at_full_size(photo: bytes) -> Image.Image:
    """Decode a photo at full size and resize it as images.py does."""
    image = Image.open(io.BytesIO(photo))
    size = [images.RESIZE * side // min(image.size) for side in image.size]
    return image.resize(size, Image.Resampling.BILINEAR)


def with_noise(image: Image.Image) -> Image.Image:
    """Change every value of an image by -1, 0 or 1 at random."""
    pixels = np.asarray(image).astype(int)
    noise = np.random.default_rng(0).integers(-1, 2, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: int) -> bytes:
    """Return an image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ask(url: str, body: bytes) -> tuple[list[float], float]:
    """Return the service's probabilities, and the least seconds of three tries."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        answer = local_server.session().post(f"{url}/predict", body, timeout=60).json()
        seconds.append(time.perf_counter() - started)
    return list(answer["probabilities"].values()), min(seconds)


def main() -> None:
    """Print the ratio of the times, and the differences between the answers."""
    parser = argparse.ArgumentParser(description="Compare large JPEGs with full-size decoding.")
    parser.add_argument("checkpoint", type=Path, help="the one that was packed last")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: data)")
    args = parser.parse_args()
    state = checkpoint.load(args.checkpoint)
    network = model.Classifier(len(state.classes)).eval()
    network.load_state_dict(state.best)
    times, float32, served = [], [], []
    with local_server.serve(str(bentos.latest().tag)) as url, torch.inference_mode():
        for path in sorted(args.data_dir.glob("val/*/*")):
            large = enlarged(path)
            full = at_full_size(large)
            versions = [large, encode(full, "PNG"), encode(with_noise(full), "PNG")]
            photos = torch.from_numpy(np.stack([images.read(version) for version in versions]))
            float32.append(network(photos).softmax(1).tolist())
            asked = [ask(url, version) for version in versions]
            served.append([probabilities for probabilities, _ in asked])
            times.append(asked[0][1] / ask(url, path.read_bytes())[1])
    print(machine.describe())
    print(f"12-megapixel JPEGs take {statistics.median(times):.2f} times as long (median).")
    for how, answers in (("float32", float32), ("as served", served)):
        reduced, full_size, noisy = np.array(answers).swapaxes(0, 1)
        print(
            f"Against decoding at full size, {how}: the same label for"
            f" {(reduced.argmax(1) == full_size.argmax(1)).sum()} of {len(times)}, probabilities"
            f" within {np.abs(reduced - full_size).max():.4f}; one level of noise in each pixel"
            f" moves them by up to {np.abs(noisy - full_size).max():.4f}"
        )


if __name__ == "__main__":
    main()
