"""The similarity of a photo to the training photos, and the threshold for calling it unlike them.

The similarity is the largest cosine of the photo's features with those of a training photo (Sun et
al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors"). The exported model contains
the features of up to 1,000 training photos, the bank.
"""

import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx

from simplestack.serving.inference import Floats, Unlike
from simplestack.training.folders import class_of

MAX_BANK = 1000  # photos, or one for each class: 2 MB
PERCENTILE = 5  # so 95 % of the photos of the classes should pass
MIN_BANK = 40  # photos: with fewer, the share of a class that is called unlike is chance
COPY = 0.9999  # minimal similarity of two files with the same photo
MAX_THRESHOLD = 0.99  # above it, the network can't tell photos apart


def choose(names: list[str], classes: list[str]) -> list[str]:
    """Return up to MAX_BANK training photos, at random; the classes take turns."""
    of_class = defaultdict(list)
    for i in np.random.default_rng(0).permutation(len(names)):
        of_class[class_of(names[i], classes)].append(names[i])
    by_turns = itertools.chain(*itertools.zip_longest(*of_class.values()))
    return [name for name in by_turns if name][: max(MAX_BANK, len(classes))]


def add_bank(path: Path, bank: Floats) -> None:
    """Insert the output `similarity`, N, before `features`: the largest cosine with the bank's.

    The rows of the bank, M×512, have the length 1, as features have.
    """
    model = onnx.load(path)
    graph = model.graph
    for name, constant in {"bank": bank.T, "columns": np.array([1])}.items():
        graph.initializer.append(onnx.numpy_helper.from_array(constant, name))
    cosines = onnx.helper.make_node("MatMul", ["features", "bank"], ["cosines"])
    nearest = onnx.helper.make_node("ReduceMax", ["cosines", "columns"], ["similarity"], keepdims=0)
    graph.node.extend([cosines, nearest])
    kind = onnx.TensorProto.FLOAT
    output = onnx.helper.make_tensor_value_info("similarity", kind, ["batch"])
    graph.output.insert(len(graph.output) - 1, output)
    onnx.save(model, path)


def threshold(bank: Floats, validation: Floats) -> Unlike:
    """Return the threshold: photos with a lower similarity are unlike those of the bank, M×512.

    It is a percentile of the similarities of the bank's own photos, each to the nearest other, or
    None with the reason. `validation`, N×512, are the features of the validation photos: the share
    below the threshold is returned, too.
    """
    cosines = bank @ bank.T
    cosines[cosines > COPY] = -1  # with itself, too
    limit = round(float(np.percentile(cosines.max(1), PERCENTILE)), 6)
    if len(bank) < MIN_BANK:
        return {"threshold": None, "reason": f"it was trained on fewer than {MIN_BANK} photos"}
    if not 0 <= limit <= MAX_THRESHOLD:  # below 0, all are copies
        reason = "to the network, all the photos that it was trained on look alike"
        return {"threshold": None, "reason": reason}
    return {
        "threshold": limit,
        "chosen_by": f"percentile {PERCENTILE:g} of the similarities of {len(bank)} training"
        " photos, each to the nearest other",
        "validation_photos_unlike": float(((validation @ bank.T).max(1) < limit).mean()),
    }
