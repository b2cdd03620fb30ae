"""The model before beside the new one, on photos that neither was trained on."""

import math
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from simplestack.files import before
from simplestack.packing.bentos import hash_files
from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel, answer
from simplestack.training import checkpoint, corrections, folders
from simplestack.training.checkpoint import Checkpoint

MIN_KEPT_OUT = 10  # corrections: fewer prove nothing
CHANCE = 0.05  # a difference of at least this probability may be chance


def belongs(onnx: Path, path: Path) -> bool:
    """Return whether an ONNX file was packed from a checkpoint; False if one is missing."""
    with suppress(StackError, OSError):
        return OnnxModel(onnx).metadata["checkpoint_sha256"] == hash_files(path)
    return False


def compare(path: Path, onnx: Path, state: Checkpoint, data_dir: Path) -> str:
    """Return how the models before and now differ, as text; "" if none is kept from before.

    They are the checkpoint at `path`, whose contents are `state`, and its ONNX file.
    """
    if not belongs(before(onnx), before(path)):
        return ""
    models = [OnnxModel(before(onnx)), OnnxModel(onnx)]
    names = {*state.photos["val"]} - {*checkpoint.load(before(path)).photos["train"]}

    def ask(photos: Iterable[Path]) -> Iterator[tuple[bool, bool, bool]]:
        """Yield whether each model is right, and whether the new one calls the photo unlike."""
        for photo in tqdm([*photos], "comparing", leave=False, disable=None):
            with suppress(StackError):  # it can't be read: training leaves such out, too
                pixels = images.read(photo.read_bytes())[None]
                old, new = (answer(model.metadata, model(pixels)) for model in models)
                parts = photo.parts[len(data_dir.parts) :]  # one of them is the class
                yield old["label"] in parts, new["label"] in parts, bool(new["unlike"])

    kept_out, none = (list(ask(folders.files_in(x))) for x in corrections.beside(data_dir))
    paths = [shlex.join(map(str, (before(x), x))) for x in (path, onnx)]
    few = ": fewer than ten prove nothing" if len(kept_out) < MIN_KEPT_OUT else ""
    return (
        f"\nbefore and now, {describe([x[:2] for x in ask(data_dir / name for name in names)])}"
        f"\nof {len(kept_out)} corrections kept out, right before: {sum(x for x, *_ in kept_out)},"
        f" now: {sum(x for _, x, _ in kept_out)}{few}"
        f"\nof {len(none)} photos of none of these, called unlike: {sum(x for *_, x in none)}"
        f"\nto bring the model before back: mv {paths[0]} && mv {paths[1]}"
        f" && python saveToBento.py {shlex.quote(str(path))}"
    )


def describe(right: list[tuple[bool, bool]]) -> str:
    """Return both accuracies, given whether each model is right, and whether it is chance.

    By McNemar's exact test (McNemar 1947, "Note on the Sampling Error of the Difference between
    Correlated Proportions or Percentages"): only photos that one model gets right count.
    """
    gained, lost, both = map(right.count, [(False, True), (True, False), (True, True)])
    tail = sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1))
    p = min(1.0, 2 * tail / 2 ** (gained + lost))
    verdict = "within chance" if p >= CHANCE else "better" if gained > lost else "WORSE"
    old, new = ((both + x) / max(1, len(right)) for x in (lost, gained))
    return (
        f"on {len(right)} validation photos that neither was trained on: accuracy {old:.4f} and"
        f" {new:.4f}; {gained} now right, {lost} now wrong: {verdict} (p = {p:.2g})"
    )
