"""The photos that the page offers to try: a few that the packed model gets right."""

import base64
import io
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from simplestack.serving import images, site
from simplestack.serving.inference import Floats, softmax

SIDE = 512  # pixels, at most
MAX_BYTES = 60_000


def choose(logits: Floats, targets: list[int]) -> list[int]:
    """Return the indices of correctly classified photos, given N×C logits and N true classes.

    They are of different classes as far as possible; of each, those with the highest confidence.
    """
    confidence = softmax(logits).max(1)
    correct = np.flatnonzero(logits.argmax(1) == targets)
    best = sorted(correct.tolist(), key=lambda i: -confidence[i])
    count: Counter[int] = Counter()
    rank = {}  # within its class
    for i in best:
        rank[i] = count[targets[i]]
        count[targets[i]] += 1
    return sorted(best, key=lambda i: rank[i])[: len(site.EXAMPLES)]


def encode(path: Path) -> str:
    """Return a photo as a small JPEG in base64, without EXIF, which may name places.

    Raises ImageError if it can't be decoded.
    """
    upright = images.decode(images.identify(path.read_bytes()), SIDE)
    photo, side = Image.fromarray(np.asarray(upright)), SIDE
    while True:
        photo.thumbnail((side, side))
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=80)
        if file.tell() < MAX_BYTES:
            return base64.b64encode(file.getvalue()).decode()
        side = side * 3 // 4
