"""The example photos on the page: a few that the packed model classifies correctly."""

import base64
import io
import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from simplestack.serving import images, site
from simplestack.serving.inference import Floats, softmax

EXAMPLE_SIDE = 512  # pixels, at most


def choose(logits: Floats, targets: list[int]) -> list[int]:
    """Return the indices of correctly classified photos, from N×C logits and N true classes.

    The classes take turns; each contributes the photos with the highest confidence first.
    """
    confidence = softmax(logits).max(1)
    correct = np.flatnonzero(logits.argmax(1) == targets).tolist()
    by_class = defaultdict(list)
    for i in sorted(correct, key=lambda i: -confidence[i]):
        by_class[targets[i]].append(i)
    by_turns = itertools.chain(*itertools.zip_longest(*by_class.values()))
    return [i for i in by_turns if i is not None][: len(site.EXAMPLES)]


def encode(path: Path) -> str:
    """Return a photo as a small JPEG in base64, without EXIF, which may contain places.

    Raises ImageError if it can't be decoded.
    """
    upright = images.decode(images.identify(path.read_bytes()), EXAMPLE_SIDE)
    photo = Image.fromarray(np.asarray(upright))  # the pixels alone
    photo.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()
