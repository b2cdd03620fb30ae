"""The lines that train.py prints, and its question."""

import sys
from pathlib import Path

from simplestack.serving.errors import printable
from simplestack.training import dataset
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.distributed import World
from simplestack.training.metrics import format_accuracy
from simplestack.training.model import foreign_weights
from simplestack.training.options import command


def print_start(path: Path, state: Checkpoint, photos: Photos, val: Photos, world: World) -> None:
    """Print warnings, the number of photos and the device, once for all processes.

    `path` is where the checkpoint will be.
    """
    if world.rank:
        return
    weighted = state.arguments["class_weights"]
    weigh = "" if weighted else command({**state.arguments, "class_weights": True}, path)
    warnings = dataset.warnings(photos, val, state.skipped, weigh)
    if not state.has_begun and not state.arguments["from_scratch"]:
        warnings += filter(None, [foreign_weights()])
    for warning in warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    if state.disclaimer:
        print(f"note: {state.disclaimer}", file=sys.stderr)
    print(
        f"{len(photos)} training photos, {len(val)} validation photos;"
        f" {printable(', '.join(state.classes))}; on {world}"
    )
    if state.has_begun:
        print(
            f"resuming after {name_epoch(state.epoch, state.arguments['epochs'])}; best validation"
            f" accuracy so far {format_best(state)}"
        )
    print(f"* marks the best validation accuracy so far; one photo is {1 / len(val):.3f}")


def format_epoch(state: Checkpoint) -> str:
    """Return the line about the last epoch."""
    row = state.history[-1]
    name = f"epoch {row['epoch']:2}/{state.arguments['epochs']}" if row["epoch"] else "linear probe"
    best = "*" if state.best_row is row else " "
    return (
        f"{name:12}  train loss {row['loss']:.3f} accuracy {row['accuracy']:.3f}"
        f"  val loss {row['val_loss']:.3f} accuracy {row['val_accuracy']:.3f}"
        f" {best} {row['seconds']:5.1f} s{'' if row['epoch'] else '  (without augmentation)'}"
    )


def format_best(state: Checkpoint) -> str:
    """Return the best epoch's validation accuracy as text, and the name of the epoch."""
    accuracy = format_accuracy(state.best_row["val_accuracy"], len(state.photos["val"]))
    return f"{accuracy}, {name_epoch(state.best_epoch, state.epoch)}"


def name_epoch(epoch: int, epochs: int) -> str:
    """Return the name of an epoch; epoch 0 is the linear probe."""
    if epoch:
        return f"epoch {epoch} of {epochs}"
    return "the linear probe (before epoch 1)" if epochs else "the linear probe"


def wants_bento(answer: str) -> bool:
    """Return whether to pack the result; ask on a terminal."""
    if answer == "ask" and sys.stdin.isatty() and sys.stdout.isatty():
        try:
            answer = input("\nSave it into BentoML now? [Y/n] ").strip().lower() or "yes"
        except (EOFError, KeyboardInterrupt):
            print()
    return answer in {"y", "yes"}
