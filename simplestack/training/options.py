"""The command line of train.py. This module is quick to import, so that --help answers at once."""

import argparse
import math
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from simplestack.training.recipes import RECIPES

FIXED = ("recipe", "batch_size", "lr", "seed", "from_scratch", "class_weights")  # when resuming
RECORDED = ("data_dir", "epochs", *FIXED)  # in checkpoints
NOT_RECORDED = ("device", "cache", "save_to_bento")  # in checkpoints; repeat them when resuming


@dataclass
class Options:
    """The options of a run: from the command line, else the checkpoint, else the recipe."""

    recipe: str
    epochs: int
    batch_size: int
    lr: float
    output: Path
    data_dir: Path = Path("data")
    seed: int = 0
    from_scratch: bool = False
    class_weights: bool = False
    device: str = "auto"
    cache: float = 2.0  # GB
    checkpoint: Path | None = None
    evaluate: bool = False
    update: bool = False
    save_to_bento: str = "ask"

    def recorded(self) -> dict[str, Any]:
        """Return the options that a checkpoint records, as plain values."""
        return {n: v if n != "data_dir" else str(v) for n, v in vars(self).items() if n in RECORDED}

    def resume_command(self) -> str:
        """Return the command that resumes the run, with the options that aren't recorded."""
        values = {name: getattr(self, name) for name in NOT_RECORDED}
        return _command(["-c", str(self.output)], values, vars(Options))


def command(recorded: dict[str, Any], output: Path | None = None) -> str:
    """Return the command that repeats a run, from the options that its checkpoint recorded.

    With `output`, the command replaces that checkpoint.
    """
    recipe = "tutorial" if recorded["from_scratch"] else "lp-ft"
    defaults = {**vars(RECIPES[recorded["recipe"]]), **vars(Options), "recipe": recipe}
    words = [] if output is None else ["--update", "--output", str(output)]
    return _command(words, recorded, defaults)


def _command(words: list[str], values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    for name, value in values.items():
        if str(value) != str(defaults[name]):
            words += [_flag(name)] if value is True else [_flag(name), str(value)]
    return shlex.join(["python", "train.py", *words])


def build_parser() -> ArgumentParser:
    """Return the parser of the command line; missing options get no attribute."""
    parser = ArgumentParser(
        description="Fine-tune ResNet-18 on a folder of photos: data/CLASS/, or data/train/CLASS/"
        " for training and data/val/CLASS/ for validation. Each class folder is a label.",
        epilog="Next: python saveToBento.py",
        argument_default=argparse.SUPPRESS,
    )
    lp_ft, tutorial = vars(RECIPES["lp-ft"]), vars(RECIPES["tutorial"])
    default = {k: f"(default: {v}; tutorial: {tutorial[k]})" for k, v in lp_ft.items()}
    lr = f"lp-ft scales the head's by {lp_ft['head_lr_scale']:g} {default['lr']}"
    recipes = (
        "lp-ft: linear probe, then fine-tuning; tutorial: as in PyTorch's tutorial"
        " (default: lp-ft, or tutorial with --from-scratch)"
    )
    add = parser.add_argument
    add("-c", "--checkpoint", type=Path, help="resume the run that wrote this checkpoint")
    add("--data-dir", type=Path, help="the photos (default: data)")
    add("--recipe", choices=tuple(RECIPES), help=recipes)
    add("--epochs", type=int, help=f"epochs of fine-tuning {default['epochs']}")
    add("--freeze", dest="epochs", action="store_const", const=0, help="only the head: --epochs 0")
    batch_size = f"photos per step, over all processes {default['batch_size']}"
    add("--batch-size", type=int, help=batch_size)
    add("--lr", type=float, help=f"learning rate of SGD; {lr}")
    class_weights = "weigh each class alike, however few photos it has"
    add("--class-weights", action="store_true", help=class_weights)
    add("--device", help="cpu, cuda, cuda:1, mps … (default: a GPU, if any)")
    add("--seed", type=int, help="the same seed gives the same run (default: 0)")
    cache = "memory for photos; if not all fit, they are read again in every epoch (default: 2)"
    add("--cache", type=float, metavar="GB", help=cache)
    from_scratch = "start from random weights: needs no download, is much less accurate"
    add("--from-scratch", action="store_true", help=from_scratch)
    add("--output", type=Path, help="the checkpoint (default: saved_models/DATE-TIME.ckpt)")
    update = (
        "resume --output if it exists; start over if the photos have changed, or to weigh classes"
    )
    add("--update", action="store_true", help=update)
    add("--evaluate", action="store_true", help="only measure --checkpoint, on any --data-dir")
    save_to_bento = "pack the result for serving (default: ask on a terminal, else no)"
    add("--save-to-bento", choices=("yes", "no", "ask"), help=save_to_bento)
    return parser


def parse_arguments(argv: list[str] | None = None) -> Namespace:
    """Return the options on the command line, without defaults."""
    args = build_parser().parse_args(argv)
    if "evaluate" in args and "checkpoint" not in args:
        build_parser().error("--evaluate needs the checkpoint: -c saved_models/NAME.ckpt")
    if "update" in args and ("output" not in args or "checkpoint" in args):
        build_parser().error("--update needs --output saved_models/NAME.ckpt, and no --checkpoint")
    return args


def merge(args: Namespace, recorded: dict[str, Any]) -> Options:
    """Return the options: from the command line, else recorded in a checkpoint, else the recipe's.

    Exit with an error if they are invalid, or contradict each other.
    """
    values = {**recorded, **vars(args)}
    name = values.setdefault("recipe", "tutorial" if "from_scratch" in args else "lp-ft")
    recipe = RECIPES[name]
    for key in ("epochs", "batch_size", "lr"):
        values.setdefault(key, getattr(recipe, key))
    new = Path("saved_models", f"{datetime.now():%Y%m%d-%H%M%S}.ckpt")
    values.setdefault("output", values.get("checkpoint", new))
    options = Options(**{**values, "data_dir": Path(values.get("data_dir", Options.data_dir))})
    if error := problem(options, recorded):
        build_parser().error(error)
    return options


def problem(options: Options, recorded: dict[str, Any]) -> str | None:
    """Return the error in these options; None if they are valid."""
    for name in set(FIXED) & set(recorded):
        if getattr(options, name) != recorded[name]:
            return (
                f"{_flag(name)} is {recorded[name]} in this run and can't be changed when"
                " resuming: start a new run without --checkpoint"
            )
    linear_probe = RECIPES[options.recipe].linear_probe
    for name in ("epochs", "batch_size", "lr", "cache"):
        zero = name == "cache" or (name == "epochs" and linear_probe)
        if not (0 if zero else 1e-9) <= getattr(options, name) < math.inf:
            return f"{_flag(name)} must be {'0 or more' if zero else 'more than 0'}"
    if linear_probe and options.from_scratch:
        return "--recipe lp-ft needs ImageNet's features: leave out --from-scratch"
    return None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
