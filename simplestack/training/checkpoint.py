"""Checkpoints: tensors and plain values only, never half-written."""

import contextlib
import fcntl
import io
import math
import pickle
import platform
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from simplestack.files import keep, write_atomically
from simplestack.serving import images
from simplestack.serving.errors import StackError, printable
from simplestack.training import folders, model
from simplestack.training.metrics import loss_and_accuracy
from simplestack.training.options import Options, command
from simplestack.training.recipes import RECIPES

FORMAT = 5
PREPROCESSING = {
    "resize": images.RESIZE,
    "crop": images.CROP,
    "mean": list(model.MEAN),
    "std": list(model.STD),
}
SUFFIX = ".ckpt"


class OtherVersionError(StackError):
    """A checkpoint was written by another version of train.py."""


@dataclass
class Checkpoint:
    """A training run after some epoch: enough to resume it, and to report or serve the model.

    The random state, the order of the photos and the learning rate follow from `arguments` and the
    epoch.
    """

    classes: list[str]
    photos: folders.Names  # paths below arguments["data_dir"]
    arguments: dict[str, Any]
    disclaimer: str  # shown with every answer, such as "trained on drawn pictures"; "" if none
    versions: dict[str, str]
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of each photo in the data folder
    skipped: list[str] = field(default_factory=list)  # "path: reason" for each unused file
    device: str = ""  # of the last epoch
    last: dict[str, Tensor] = field(default_factory=dict)  # weights after the last epoch
    best: dict[str, Tensor] = field(default_factory=dict)  # weights after the best epoch
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)  # of gradients in float16; {} without
    history: list[dict[str, float]] = field(default_factory=list)  # a row per epoch: `add_epoch`
    val_logits: Tensor = field(default_factory=lambda: torch.zeros(0))  # best epoch, N×C float32
    # Inputs of the head for the training, then the validation photos, N×512 float32: before
    # fine-tuning, or, at the end of a recipe without linear probe, of the best epoch.
    features: Tensor = field(default_factory=lambda: torch.zeros(0))
    architecture: str = "resnet18"
    preprocessing: dict[str, Any] = field(default_factory=lambda: dict(PREPROCESSING))
    format: int = FORMAT

    @property
    def has_begun(self) -> bool:
        """Whether an epoch is finished."""
        return bool(self.history)

    @property
    def epoch(self) -> int:
        """The last finished epoch; 0 is the linear probe, or none yet."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def next_epoch(self) -> int:
        """The epoch to train now; 0 is the linear probe, if the recipe has one."""
        probe = RECIPES[self.arguments["recipe"]].linear_probe
        return 0 if probe and not self.history else self.epoch + 1

    @property
    def best_row(self) -> dict[str, float]:
        """The row of the best epoch: by validation accuracy, among equals by validation loss."""
        return max(self.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))

    @property
    def best_epoch(self) -> int:
        """The epoch with the weights that are served."""
        return int(self.best_row["epoch"])

    def add_epoch(
        self,
        epoch: int,
        training: tuple[float, float],
        val_logits: Tensor,
        val_labels: Tensor,
        started: float,
    ) -> None:
        """Add an epoch to the history; keep its logits if it is the best.

        `training` is the loss and the accuracy in training, `val_logits` are N×C, `val_labels` N
        class indices, and `started` is the time.perf_counter() at its start. Raises StackError if a
        loss isn't finite: the weights are worthless then.
        """
        (loss, accuracy), seconds = training, time.perf_counter() - started
        val_loss, val_accuracy = loss_and_accuracy(val_logits, val_labels)
        if not math.isfinite(loss + val_loss):
            raise StackError(
                f"the loss of epoch {epoch} isn't finite: the learning rate"
                f" {self.arguments['lr']:g} is too high, start again with a smaller --lr; the"
                " checkpoint of the epoch before, if there is one, is untouched"
            )
        row = {"epoch": epoch, "loss": loss, "accuracy": accuracy}
        row |= {"val_loss": val_loss, "val_accuracy": val_accuracy, "seconds": seconds}
        self.history.append(row)
        if self.best_row is row:
            self.val_logits = val_logits

    def keep(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Copy the state after the last epoch; if it is the best, its weights are `best`, too."""
        self.last = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        self.optimizer, self.scaler = optimizer.state_dict(), scaler.state_dict()
        if self.best_row is self.history[-1]:
            self.best = self.last

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Load the state after the last epoch, if there is one."""
        if not self.history:
            return
        model.load_state_dict(self.last)
        optimizer.load_state_dict(self.optimizer)
        if self.scaler:  # else it was on a device that needs none
            scaler.load_state_dict(self.scaler)


def begin(options: Options) -> Checkpoint:
    """Return the checkpoint of a run that has not begun."""
    folder = folders.scan(options.data_dir)
    return Checkpoint(
        classes=folder.classes(),
        photos=folders.split_photos(folder, options.seed),
        sizes=folder.sizes,
        skipped=folder.unexpected,
        arguments=options.recorded(),
        disclaimer=folders.disclaimer(options.data_dir, options.from_scratch),
        versions={"python": platform.python_version()}
        | {package.__name__: str(package.__version__) for package in (torch, torchvision)},
    )


def resume(args: Namespace) -> Checkpoint | None:
    """Return the checkpoint that the command line resumes; None for a new run.

    It is that of --checkpoint or, with --update, of --output; `args.checkpoint` is then its path.
    With --update, changed photos or new class weights start a new run: `args` gets the recorded
    arguments, and a finished checkpoint is kept as NAME.before.ckpt. Raises StackError if photos
    have changed and --update is missing.
    """
    update = "update" in args and args.output.exists()
    if not update and "checkpoint" not in args:
        return None
    path = args.output if update else args.checkpoint
    try:
        state = load(path)
    except OtherVersionError:
        if not update:
            raise
        print(f"{printable(str(path))} is of another version of train.py. Training again.")
        return None
    if "evaluate" in args:
        return state
    data_dir = getattr(args, "data_dir", Path(state.arguments["data_dir"]))
    changed = folders.changes(folders.scan(data_dir), state.classes, state.sizes)
    if changed and not update:
        raise StackError(
            f"{data_dir} has changed since {path} was trained ({changed}): to train again on the"
            f" photos that are there now, {command({**state.arguments, 'data_dir': str(data_dir)})}"
        )
    reason = f"{data_dir} has changed: {changed}" if changed else ""
    if update and "class_weights" in args and not state.arguments["class_weights"]:
        reason = reason or f"{path} was trained without --class-weights"
    if reason:
        print(f"{printable(reason)}. Training again.")
        if state.epoch >= state.arguments["epochs"]:
            keep(path)
        vars(args).update({**state.arguments, **vars(args)})
        return None
    args.checkpoint = path
    return state


def check_output(path: Path, *, replace: bool) -> None:
    """Raise StackError if `path` is no checkpoint's, or exists and isn't to be replaced."""
    if path.suffix != SUFFIX:
        raise StackError(f"{path} must end in {SUFFIX}, as checkpoints do")
    if path.exists() and not replace:
        raise StackError(f"{path} exists: choose another --output, or resume with -c {path}")


@contextlib.contextmanager
def lock(path: Path, rank: int = 0) -> Iterator[None]:
    """Hold the lock file beside a checkpoint, in the process of rank 0 only.

    The system releases it when the process ends, however it does. Raises StackError if another
    process holds it, and OSError if the folder can't be written.
    """
    if rank:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(path.name + ".lock")
    with name.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError(
                f"another train.py is writing {path}: wait for its end, or choose another --output"
            ) from error
        except OSError as error:  # some network file systems have no locks
            reason = printable(f"can't lock {path} ({error.strerror})")
            print(f"warning: {reason}: don't train it twice at once", file=sys.stderr)
        try:
            yield
        finally:
            name.unlink(missing_ok=True)


def save(path: Path, checkpoint: Checkpoint, rank: int = 0) -> None:
    """Replace the checkpoint at `path`, in the process of rank 0 only.

    Raises OSError if that fails; the old one then stays.
    """
    if rank:
        return
    buffer = io.BytesIO()  # torch reports a failed write, and even Ctrl-C, as a RuntimeError
    torch.save(vars(checkpoint), buffer)
    with write_atomically(path) as file:
        file.write(buffer.getbuffer())


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. Raises StackError if it is missing, foreign or damaged."""
    if not path.is_file():
        raise StackError(f"there is no checkpoint {path}: `python train.py` makes one")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StackError(
            f"{path} is not a checkpoint, or holds pickled Python objects, as the 2020 tutorial's"
            " do. Loading these could run any code, so it isn't read: train again with"
            " `python train.py`"
        ) from error
    except Exception as error:  # torch raises many types on files that it can't read
        raise StackError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}): use another one, or"
            " train again with `python train.py`"
        ) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise OtherVersionError(
            f"{path} is not a checkpoint of this version of train.py: use one that is, or move it"
            " away and train again with `python train.py`"
        )
    if values["preprocessing"] != PREPROCESSING:
        raise StackError(
            f"{path} was trained with other preprocessing ({values['preprocessing']}) than today's"
            f" ({PREPROCESSING}): train again with `python train.py`"
        )
    return Checkpoint(**values)
