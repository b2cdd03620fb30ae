"""What train.py prints, and asks."""

import sys

from simplestack.serving.errors import printable
from simplestack.training import dataset
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.model import foreign_weights


def introduce(state: Checkpoint, photos: Photos, val: Photos, on: str) -> None:
    """Print what is known before the first epoch."""
    warnings = dataset.warnings(photos, val)
    if not state.history and not state.arguments["from_scratch"]:
        warnings += filter(None, [foreign_weights()])
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if state.notice:
        print(f"note: {printable(state.notice)}", file=sys.stderr)
    print(
        f"{len(photos)} training photos, {len(val)} validation photos;"
        f" {printable(', '.join(state.classes))}; on {on}"
    )
    if state.history:
        print(
            f"resuming after epoch {state.epoch} of {state.arguments['epochs']}; best validation"
            f" accuracy so far {state.best_accuracy:.3f}, {format_best(state)}"
        )
    print("* marks the best validation accuracy so far")


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
    """Return which epoch was the best."""
    where = f"in epoch {state.best_epoch}" if state.best_epoch else "with the linear probe"
    return f"{where}, of {state.epoch} epochs" if state.epoch else where


def wants_bento(answer: str) -> bool:
    """Return whether to pack the result; ask on a terminal."""
    if answer == "ask" and sys.stdin.isatty() and sys.stdout.isatty():
        try:
            answer = input("\nSave it into BentoML now? [Y/n] ").strip().lower() or "yes"
        except (EOFError, KeyboardInterrupt):
            print()
    return answer in {"y", "yes"}
