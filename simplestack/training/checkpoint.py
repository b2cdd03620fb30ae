"""Checkpoints: tensors and plain values only, never half-written."""

import io
import math
import pickle
import platform
import tempfile
from argparse import Namespace
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pydantic
import torch
import torchvision
from torch import Tensor, nn

from simplestack.files import write_atomically
from simplestack.serving import images
from simplestack.serving.errors import StackError, printable
from simplestack.training import folders, model
from simplestack.training.options import Options, command

FORMAT = 4
SUFFIX = ".ckpt"
PICKLES = (b"PK", b"\x80")  # how PyTorch's archives and plain pickles begin
PREPROCESSING = {
    "resize": images.RESIZE,
    "crop": images.CROP,
    "mean": list(model.MEAN),
    "std": list(model.STD),
}


@pydantic.with_config(arbitrary_types_allowed=True, revalidate_instances="always")
@dataclass
class Checkpoint:
    """A training run after some epoch: all that is needed to resume or to serve it.

    Random state, order of the photos and learning rate are not stored: they follow from
    `arguments` and the epoch.
    """

    classes: list[str]
    photos: dict[str, list[str]]  # "train" and "val", as paths below arguments["data_dir"]
    arguments: dict[str, Any]
    notice: str  # the disclaimer: what to know before trusting the model; "" if nothing
    versions: dict[str, str]
    sizes: dict[str, int] = field(default_factory=dict)  # in bytes, of all photos that were found
    last: dict[str, Tensor] = field(default_factory=dict)  # weights after the last epoch
    best: dict[str, Tensor] = field(default_factory=dict)  # weights after the best epoch
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)  # of gradients in float16; {} without
    history: list[dict[str, float]] = field(default_factory=list)  # one row per epoch
    architecture: str = "resnet18"
    preprocessing: dict[str, Any] = field(default_factory=lambda: dict(PREPROCESSING))
    format: int = FORMAT

    @property
    def epoch(self) -> int:
        """The last finished epoch; 0 is the linear probe, or none yet."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def best_row(self) -> dict[str, float]:
        """The row of the best epoch: by validation accuracy, among equals by validation loss."""
        return max(self.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))

    @property
    def best_epoch(self) -> int:
        """The best epoch."""
        return int(self.best_row["epoch"])

    @property
    def best_accuracy(self) -> float:
        """The validation accuracy of the best epoch, 0 to 1."""
        return self.best_row["val_accuracy"]

    def add_epoch(
        self,
        row: dict[str, float],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        """Take over the state after an epoch, and keep its weights if it is the best so far.

        Raises StackError if a loss is no longer finite, as the weights are worthless then.
        """
        if not math.isfinite(row["loss"] + row["val_loss"]):
            raise StackError(
                f"the loss of epoch {row['epoch']} isn't finite: the learning rate"
                f" {self.arguments['lr']:g} is too high, start again with a smaller --lr; the"
                " checkpoint of the epoch before, if there is one, is untouched"
            )
        self.history.append(row)
        self.last = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        if self.best_row is row:
            self.best = self.last
        self.optimizer, self.scaler = optimizer.state_dict(), scaler.state_dict()


ARGUMENTS = {
    **{"data_dir": str, "epochs": int, "recipe": str, "batch_size": int},
    **{"lr": float, "seed": int, "from_scratch": bool, "class_weights": bool},
}


def new(options: Options) -> Checkpoint:
    """Return the checkpoint of a run that has not begun."""
    classes = folders.find_classes(options.data_dir)
    photos = folders.find_photos(options.data_dir, classes, options.seed)
    return Checkpoint(
        classes=classes,
        photos=photos,
        sizes=folders.sizes(options.data_dir, photos["train"] + photos["val"]),
        arguments=options.recorded(),
        notice=folders.disclaimer(options.data_dir, options.from_scratch),
        versions=versions(),
    )


def resume(given: Namespace) -> Checkpoint | None:
    """Return the run to go on with, given the command line; None for a new one.

    A new one instead of another is given that one's arguments, too. Raises StackError if its photos
    have changed, unless it may be trained anew.
    """
    update = "update" in given and given.output.exists()
    if not update and "checkpoint" not in given:
        return None
    path = given.output if update else given.checkpoint
    state = load(path)
    if "evaluate" in given:
        return state
    data_dir = getattr(given, "data_dir", Path(state.arguments["data_dir"]))
    changed = folders.changes(data_dir, state.classes, state.sizes)
    if changed and not update:
        raise StackError(
            f"{data_dir} has changed since {path} was trained ({changed}): to train anew on what is"
            f" there now, {command({**state.arguments, 'data_dir': str(data_dir)})}"
        )
    if changed:
        print(f"{printable(f'{data_dir} has changed: {changed}')}. Training anew.")
        vars(given).update({**state.arguments, **vars(given)})
        return None
    given.checkpoint = path
    return state


def versions() -> dict[str, str]:
    """Return the versions that the result of a training depends on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }


def check_output(path: Path, *, replace: bool) -> None:
    """Raise StackError if `path` can't be written, or exists and isn't to be replaced."""
    if path.suffix != SUFFIX:
        raise StackError(f"{path} must end in {SUFFIX}, as checkpoints do")
    try:
        if path.exists() and not replace:
            raise StackError(f"{path} exists: choose another --output, or resume with -c {path}")
        if path.with_suffix("").is_file():
            raise StackError(f"{path.with_suffix('')} is where the report goes: move that file")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StackError(
            f"can't write {path} ({error.strerror}): name another place with --output"
        ) from error


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint at `path`. Raises OSError if it can't; the old one then stays."""
    buffer = io.BytesIO()  # torch reports a failed write, and even Ctrl-C, as a RuntimeError
    torch.save(vars(checkpoint), buffer)
    with write_atomically(path) as file:
        file.write(buffer.getbuffer())


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. Raises StackError if it is missing, foreign or damaged."""
    if not path.is_file():
        raise StackError(f"there is no checkpoint {path}: `python train.py` makes one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            if not file.read(2).startswith(PICKLES):
                raise StackError(f"{path} is not a checkpoint, whatever its name says") from error
        raise StackError(
            f"{path} holds pickled Python objects, as the 2020 tutorial's checkpoints do. Loading"
            " them could run any code, so they are not read: train again with `python train.py`"
        ) from error
    except Exception as error:  # torch raises many types on files that it can't read
        raise StackError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}): use another one, or"
            " train again with `python train.py`"
        ) from error
    names = {item.name for item in fields(Checkpoint)}
    if not isinstance(state, dict) or state.get("format") != FORMAT or set(state) != names:
        raise StackError(
            f"{path} is not a checkpoint of this version of train.py: use one that is, or move it"
            " away and train again with `python train.py`"
        )
    if state["preprocessing"] != PREPROCESSING:
        raise StackError(
            f"{path} was trained with other preprocessing ({state['preprocessing']}) than today's"
            f" ({PREPROCESSING}): train again with `python train.py`"
        )
    checkpoint = Checkpoint(**state)
    if not is_whole(checkpoint):
        raise StackError(
            f"{path} is damaged: use another checkpoint, or train again with `python train.py`"
        )
    return checkpoint


def is_whole(checkpoint: Checkpoint) -> bool:
    """Return whether values have the types, and weights the shapes, that training gives them."""
    try:
        pydantic.TypeAdapter(Checkpoint).validate_python(checkpoint, strict=True)
    except pydantic.ValidationError:
        return False
    photos = checkpoint.photos
    labels = {
        folders.class_of(name, checkpoint.classes) for names in photos.values() for name in names
    }
    with torch.device("meta"):
        expected = model.Classifier(len(checkpoint.classes)).state_dict()
    return (
        {name: type(value) for name, value in checkpoint.arguments.items()} == ARGUMENTS
        and all(photos.get(split) for split in ("train", "val"))
        and labels <= set(checkpoint.classes)
        and bool(checkpoint.history)
        and all(
            math.isfinite(row.get(name, math.nan))
            for row in checkpoint.history
            for name in ("epoch", "val_accuracy", "val_loss")
        )
        and all(_fits(weights, expected) for weights in (checkpoint.last, checkpoint.best))
        and all(bool(value.isfinite().all()) for value in checkpoint.best.values())
    )


def _fits(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return weights.keys() == expected.keys() and all(
        value.shape == expected[name].shape and value.dtype == expected[name].dtype
        for name, value in weights.items()
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a checkpoint's state into an optimizer. Raises StackError if it is damaged."""

    def kinds(groups: list[dict[str, Any]]) -> list[dict[str, type]]:
        return [{name: type(value) for name, value in group.items()} for group in groups]

    expected = kinds(optimizer.param_groups)
    try:
        optimizer.load_state_dict(state)
        whole = kinds(optimizer.param_groups) == expected and all(
            buffer.shape == parameter.shape
            for parameter, buffers in optimizer.state.items()
            for buffer in buffers.values()
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise StackError(
            "the optimizer's state in the checkpoint is damaged: train again with `python train.py`"
        )


def newest(folder: Path) -> Path:
    """Return the checkpoint that was written last. Raises StackError if there is none."""
    paths = sorted(folder.glob("*" + SUFFIX), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise StackError(f"there is no checkpoint in {folder}/: run `python train.py` first")
    return paths[-1]
