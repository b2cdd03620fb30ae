"""Checkpoints: tensors and plain values only, never half-written."""

import contextlib
import os
import pickle
import platform
import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.training import model

FORMAT = 2
SUFFIX = ".ckpt"
PREPROCESSING = {
    "resize": images.RESIZE,
    "crop": images.CROP,
    "mean": list(model.MEAN),
    "std": list(model.STD),
}


@dataclass
class Checkpoint:
    """A training run after some epoch, and all that is needed to go on or to serve it.

    The random state, the order of the photos and the learning rate need no place of their own:
    they follow from `arguments` and the number of the epoch.
    """

    classes: list[str]
    photos: dict[str, list[str]]  # "train" and "val", as paths below arguments["data_dir"]
    arguments: dict[str, Any]
    notice: str  # what people must know of the model before they trust it; "" if nothing
    versions: dict[str, str]
    last: dict[str, Tensor] = field(default_factory=dict)  # weights after the last epoch
    best: dict[str, Tensor] = field(default_factory=dict)  # weights after the best epoch
    optimizer: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)  # one row an epoch, see train.py
    architecture: str = "resnet18"
    preprocessing: dict[str, Any] = field(default_factory=lambda: dict(PREPROCESSING))
    format: int = FORMAT

    @property
    def epoch(self) -> int:
        """The last epoch finished; 0 also where none is."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def best_epoch(self) -> int:
        """The epoch with the best validation accuracy, the first among equals."""
        return int(max(self.history, key=lambda row: row["val_accuracy"])["epoch"])

    @property
    def best_accuracy(self) -> float:
        """The best validation accuracy, 0 to 1."""
        return max(row["val_accuracy"] for row in self.history)


def versions() -> dict[str, str]:
    """Name the versions that decide what a training gives."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }


def check_output(path: Path, *, resumed: bool) -> None:
    """Raise StackError where a checkpoint can't be written to `path`, or isn't to be.

    One that is there already is replaced by a resumed run only.
    """
    if path.suffix != SUFFIX:
        raise StackError(f"{path} must end in {SUFFIX}, as checkpoints do")
    try:
        if path.exists() and not resumed:
            raise StackError(f"{path} exists: choose another --output, or go on with -c {path}")
        if path.with_suffix("").is_file():
            raise StackError(f"{path.with_suffix('')} is where the report goes: move that file")
        folder = next(above for above in path.absolute().parents if above.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StackError(
            f"can't write {path} ({error.strerror}): name another place with --output"
        ) from error


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that `path` is always either the old one or the new one, whole.

    Raises StackError if the disk won't take it; the old one then stays.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(vars(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)  # or a power cut may undo the renaming
    except (OSError, RuntimeError) as error:  # torch's writer makes the latter of what stops it
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        reason = cause.strerror if isinstance(cause, OSError) else error
        raise StackError(
            f"can't write {path} ({reason}): make room, or name another place with --output;"
            " what was there before is untouched"
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            part.unlink()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. Raises StackError for a missing, foreign or damaged one."""
    if not path.is_file():
        raise StackError(f"there is no checkpoint {path}: `python train.py` makes one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StackError(
            f"{path} holds pickled Python objects, as the 2020 tutorial's checkpoints do. Those can"
            " run any code when loaded and are not read: train again with `python train.py`"
        ) from error
    except Exception as error:  # torch raises many types on files that it can't make sense of
        raise StackError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}): use another one, or"
            " train again with `python train.py`"
        ) from error
    names = {item.name for item in fields(Checkpoint)}
    if not isinstance(state, dict) or state.get("format") != FORMAT or set(state) != names:
        raise StackError(
            f"{path} is not a checkpoint of this train.py (format {FORMAT}): use one from"
            " saved_models/, or train again with `python train.py`"
        )
    if state["preprocessing"] != PREPROCESSING:
        raise StackError(
            f"{path} was trained on photos prepared otherwise ({state['preprocessing']}) than they"
            f" are here ({PREPROCESSING}): train again with `python train.py`"
        )
    return Checkpoint(**state)


def newest(folder: Path) -> Path:
    """Find the checkpoint that was written last. Raises StackError if there is none."""
    paths = sorted(folder.glob("*" + SUFFIX), key=lambda p: p.stat().st_mtime)
    if not paths:
        raise StackError(f"there is no checkpoint in {folder}/: run `python train.py` first")
    return paths[-1]
