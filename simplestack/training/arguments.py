"""The command line of train.py."""

import argparse
import math
from pathlib import Path
from typing import Any

from simplestack.training import checkpoint
from simplestack.training.recipe import RECIPES

FIXED = ("recipe", "batch_size", "lr", "seed", "from_scratch")  # can't change when resuming


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Fine-tune ResNet-18 on a folder of photos: data/CLASS/, or data/train/CLASS/"
        " for training and data/val/CLASS/ for validation. Each class folder is a label.",
        epilog="Next: python saveToBento.py",
    )
    lp_ft, tutorial = RECIPES["lp-ft"], RECIPES["tutorial"]
    default = "(default: {}; tutorial: {})"
    epochs = default.format(lp_ft.epochs, tutorial.epochs)
    batch_size = default.format(lp_ft.batch_size, tutorial.batch_size)
    lr = f"lp-ft scales the head's by {lp_ft.head_lr:g} " + default.format(lp_ft.lr, tutorial.lr)
    recipes = (
        "lp-ft: linear probe, then fine-tune the whole network; tutorial: as in PyTorch's tutorial"
        " (default: lp-ft, or tutorial with --from-scratch)"
    )
    add = parser.add_argument
    add("-c", "--checkpoint", type=Path, help="resume the run that wrote this checkpoint")
    add("--data-dir", type=Path, default=Path("data"), help="the photos (default: data)")
    add("--recipe", choices=tuple(RECIPES), help=recipes)
    add("--epochs", type=int, help=f"epochs of fine-tuning {epochs}")
    add("--freeze", dest="epochs", action="store_const", const=0, help="only the head: --epochs 0")
    add("--batch-size", type=int, help=f"photos per step, over all processes {batch_size}")
    add("--lr", type=float, help=f"learning rate of SGD; {lr}")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps … (default: a GPU, if any)")
    add("--seed", type=int, default=0, help="the same seed gives the same run (default: 0)")
    cache = "memory for decoded photos; the rest is read again in every epoch (default: 2)"
    add("--cache", type=float, default=2.0, metavar="GB", help=cache)
    from_scratch = "start from random weights: needs no download, is much less accurate"
    add("--from-scratch", action="store_true", help=from_scratch)
    add("--output", type=Path, help="the checkpoint (default: saved_models/DATE-TIME.ckpt)")
    add("--tensorboard", action="store_true", help="also log for TensorBoard")
    add("--evaluate", action="store_true", help="only print the metrics of --checkpoint")
    save_to_bento = "pack the result for serving (default: ask on a terminal, else no)"
    add("--save-to-bento", choices=("yes", "no", "ask"), default="ask", help=save_to_bento)
    parser.set_defaults(resumed=None)
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; what isn't given comes from the checkpoint, or from the recipe."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.checkpoint:
        resumed = checkpoint.load(args.checkpoint)
        parser.set_defaults(**resumed.arguments, resumed=resumed, output=args.checkpoint)
        args = parser.parse_args(argv)
    args.recipe = args.recipe or ("tutorial" if args.from_scratch else "lp-ft")
    for name in ("epochs", "batch_size", "lr"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(RECIPES[args.recipe], name))
    check_arguments(parser, args)
    return args


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an error if the arguments make no sense, alone or together."""
    recipe = RECIPES[args.recipe]
    before = args.resumed.arguments if args.resumed else {}
    for name, value in before.items():
        if name in FIXED and getattr(args, name) != value:
            parser.error(
                f"--{name.replace('_', '-')} is {value} in this run and can't be changed when"
                " resuming: start a new run without --checkpoint"
            )
    for name in ("epochs", "batch_size", "lr", "cache"):
        zero = name == "cache" or (name == "epochs" and recipe.linear_probe)
        if not (0 if zero else 1e-9) <= getattr(args, name) < math.inf:
            minimum = "0 or more" if zero else "more than 0"
            parser.error(f"--{name.replace('_', '-')} must be {minimum}")
    if recipe.linear_probe and args.from_scratch:
        parser.error("--recipe lp-ft needs ImageNet's features: leave out --from-scratch")
    if args.evaluate and not args.checkpoint:
        parser.error("--evaluate needs the checkpoint: -c saved_models/NAME.ckpt")


def recorded(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that a checkpoint records, as plain values."""
    fixed = {name: getattr(args, name) for name in FIXED}
    return {"data_dir": str(args.data_dir), "epochs": args.epochs, **fixed}
