"""Fine-tune ResNet-18 on a folder of photos.

    python train.py                                  # data/, on the GPU if there is one
    python train.py --freeze                         # only the head: seconds
    python train.py --recipe tutorial                # the tutorial's 25 epochs, as published
    python train.py -c saved_models/NAME.ckpt        # go on where that run stopped
    python train.py --evaluate -c saved_models/NAME.ckpt
    torchrun --nproc_per_node=2 train.py             # several processes, GPUs or machines

The photos lie in data/CLASS/, or in data/train/CLASS/ and data/val/CLASS/; every class folder is a
label. After each epoch the checkpoint in saved_models/ is written anew. It holds the weights of the
last and of the best epoch, so a crash costs at most the epoch under way. Beside it, in a folder of
the same name, lie history.csv, metrics.json and report.html.
"""

import argparse
import math
import shlex
import signal
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, data, engine, metrics, model, report
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.engine import Engine
from simplestack.training.recipe import RECIPES, Recipe

SAVED_MODELS = Path("saved_models")
GB = 1e9  # bytes
FIXED = ("recipe", "batch_size", "lr", "seed", "from_scratch")  # what a resumed run can't change
KEPT = ("data_dir", "epochs", *FIXED)  # the arguments that a checkpoint remembers


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; a resumed run takes what isn't given from its checkpoint."""
    parser = argparse.ArgumentParser(
        description="Fine-tune ResNet-18 on a folder of photos: data/CLASS/, or data/train/CLASS/"
        " for training and data/val/CLASS/ for validation. Each class folder is a label.",
        epilog="Next: python saveToBento.py",
    )
    add = parser.add_argument
    add("-c", "--checkpoint", type=Path, help="go on with the run that wrote this checkpoint")
    add("--data-dir", type=Path, default=Path("data"), help="the photos (default: data)")
    add(
        "--recipe",
        choices=tuple(RECIPES),
        help="lp-ft: fit the head on frozen features, then fine-tune all; tutorial: as in"
        " PyTorch's tutorial (default: lp-ft, or tutorial with --from-scratch)",
    )
    ours, theirs = RECIPES["lp-ft"], RECIPES["tutorial"]
    either = "(default: {}; tutorial: {})"
    add(
        "--epochs",
        type=int,
        help="passes of fine-tuning over the photos " + either.format(ours.epochs, theirs.epochs),
    )
    add("--freeze", dest="epochs", action="store_const", const=0, help="only the head: --epochs 0")
    add(
        "--batch-size",
        type=int,
        help="photos per step, of all processes together "
        + either.format(ours.batch_size, theirs.batch_size),
    )
    add(
        "--lr",
        type=float,
        help=f"learning rate of SGD; with lp-ft the head's is {ours.head_lr:g} times that "
        + either.format(ours.lr, theirs.lr),
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps … (default: a GPU, if any)")
    add("--seed", type=int, default=0, help="the same seed gives the same run (default: 0)")
    add(
        "--cache",
        type=float,
        default=2.0,
        metavar="GB",
        help="memory for decoded photos, those beyond it are read again each time (default: 2)",
    )
    add(
        "--from-scratch",
        action="store_true",
        help="start from random weights, not from ImageNet's: needs no download, learns far less",
    )
    add("--output", type=Path, help="what to write (default: saved_models/DATE-TIME.ckpt)")
    add("--tensorboard", action="store_true", help="log for TensorBoard too, beside the checkpoint")
    add("--evaluate", action="store_true", help="only print the metrics of --checkpoint")
    add(
        "--save-to-bento",
        choices=("yes", "no", "ask"),
        default="ask",
        help="pack the result for serving at the end (default: ask, or no without a terminal)",
    )
    parser.set_defaults(resumed=None)
    args = parser.parse_args(argv)
    if args.checkpoint:
        resumed = checkpoint.load(args.checkpoint)
        parser.set_defaults(**resumed.arguments, resumed=resumed, output=args.checkpoint)
        args = parser.parse_args(argv)
        for name in FIXED:
            if getattr(args, name) != resumed.arguments[name]:
                parser.error(
                    f"--{name.replace('_', '-')} is {resumed.arguments[name]} in this run and can't"
                    " be changed on the way: start a new run without --checkpoint"
                )
    args.recipe = args.recipe or ("tutorial" if args.from_scratch else "lp-ft")
    recipe = RECIPES[args.recipe]
    for name in ("epochs", "batch_size", "lr", "cache"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(recipe, name))
        zero = name == "cache" or (name == "epochs" and recipe.probe)
        if not (0 if zero else 1e-9) <= getattr(args, name) < math.inf:
            least = "0 or more" if zero else "more than 0"
            parser.error(f"--{name.replace('_', '-')} must be {least}")
    if recipe.probe and args.from_scratch:
        parser.error("--recipe lp-ft needs ImageNet's features: leave out --from-scratch")
    if args.evaluate and not args.checkpoint:
        parser.error("--evaluate needs the checkpoint: -c saved_models/NAME.ckpt")
    return args


@dataclass
class Run:
    """A training under way."""

    args: argparse.Namespace
    engine: Engine
    train: data.Photos
    val: data.Photos
    network: model.Classifier
    learner: nn.Module  # the network, joined to those of the other processes
    optimizer: torch.optim.Optimizer
    state: Checkpoint
    path: Path

    @property
    def recipe(self) -> Recipe:
        """How it learns."""
        return RECIPES[str(self.args.recipe)]


def main(argv: list[str] | None = None) -> None:
    """Train, from the command line to the checkpoint."""
    args = parse_arguments(argv)
    path = args.output or SAVED_MODELS / f"{datetime.now():%Y%m%d-%H%M%S}{checkpoint.SUFFIX}"
    if not args.evaluate:  # what can't be written in the end is said now
        checkpoint.check_output(path, resumed=path == args.checkpoint)
    if args.tensorboard:
        report.tensorboard_writer()
    try:
        fit(prepare(args, engine.start(args.device), path))
    except KeyboardInterrupt:
        go_on = f"python train.py -c {shlex.quote(str(path))}"
        more = f" To go on after the last finished epoch:\n  {go_on}"
        print(f"\nStopped.{more if path.exists() else ''}", file=sys.stderr)
        sys.exit(130)


def fit(run: Run) -> None:
    """Learn, epoch by epoch, and finish; or only measure, where that is asked for."""
    args, state = run.args, run.state
    if args.evaluate:
        measured = report.evaluate(state, run.engine, run.val)
        if run.engine.rank == 0:
            print(metrics.text(measured))
        engine.stop()
        return
    steps = math.ceil(len(run.train) / args.batch_size)  # an epoch
    # None: only on a terminal
    disable = True if run.engine.rank else None
    with tqdm(total=args.epochs * steps, unit="step", disable=disable) as bar:
        bar.update(state.epoch * steps)
        if run.recipe.probe and not state.history:
            fit_head(run, bar)
        for epoch in range(state.epoch + 1, args.epochs + 1):
            bar.set_description(f"epoch {epoch}/{args.epochs}")
            train_epoch(run, epoch, bar)
    engine.stop()
    if run.engine.rank == 0:
        finish(run)


def prepare(args: argparse.Namespace, where: Engine, path: Path) -> Run:
    """Read the photos, build the network, and bring back what a resumed run had learnt."""
    recipe = RECIPES[args.recipe]
    state = args.resumed or new_checkpoint(args)
    if args.resumed:
        data.check_recorded(args.data_dir, state.photos)
    train, val, warnings = data.open_photos(
        args.data_dir,
        state.photos,
        state.classes,
        augment=recipe.augmentation(),
        budget=where.memory(args.cache * GB),
        device=where.device,
    )
    torch.manual_seed(args.seed % 2**64)
    known = args.resumed or args.from_scratch
    network = (model.Classifier if known else model.pretrained)(len(state.classes))
    network = network.to(memory_format=torch.channels_last).to(where.device)
    optimizer = recipe.optimizer(network, args.lr)
    if args.resumed:
        network.load_state_dict(state.last)
        optimizer.load_state_dict(state.optimizer)
        if args.epochs != state.arguments["epochs"] and recipe.cosine and state.epoch:
            warnings.append("--epochs has changed: from here, lr decays over the new number")
    state.arguments |= {"epochs": args.epochs, "data_dir": str(args.data_dir)}
    state.photos = {"train": train.names, "val": val.names}
    if where.rank == 0:
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if state.notice:
            print(f"note: {state.notice}", file=sys.stderr)
        print(
            f"{len(train)} training photos, {len(val)} validation photos;"
            f" {', '.join(state.classes)}; on {where}"
        )
    learner = where.parallel(network)
    return Run(args, where, train, val, network, learner, optimizer, state, path)


def new_checkpoint(args: argparse.Namespace) -> Checkpoint:
    """Describe a run in which nothing has been learnt yet."""
    classes = data.find_classes(args.data_dir)
    kept = {name: getattr(args, name) for name in KEPT}
    return Checkpoint(
        classes=classes,
        photos=data.find_photos(args.data_dir, classes, args.seed),
        arguments={n: str(v) if isinstance(v, Path) else v for n, v in kept.items()},
        notice=data.notice(args.data_dir, args.from_scratch),
        versions=checkpoint.versions(),
    )


def fit_head(run: Run, bar: "tqdm[Any]") -> None:
    """Fit the head to the frozen features of all photos, as they are: epoch 0."""
    started = time.perf_counter()
    with run.engine.autocast(run.recipe.bfloat16):
        features = run.engine.run(run.network, run.train, features=True)
    labels = torch.tensor(run.train.labels)
    logits = run.network.fit_head(features, labels)
    loss, accuracy = metrics.loss_and_accuracy(logits, labels)
    finish_epoch(run, {"epoch": 0, "loss": loss, "accuracy": accuracy}, started, bar)


def train_epoch(run: Run, epoch: int, bar: "tqdm[Any]") -> None:
    """Take one step a batch over all photos, in an order and with crops that the seed decides."""
    started = time.perf_counter()
    seed = (run.args.seed * 100_003 + epoch) % 2**64
    order = torch.randperm(len(run.train), generator=torch.Generator().manual_seed(seed)).tolist()
    size = run.args.batch_size
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    # A process for which the last batch has no photo left takes one along, without any weight.
    shares = [run.engine.share(batch) or batch[:1] for batch in batches]
    plan = [[(i, seed * 1_000_003 + i) for i in share] for share in shares]
    run.learner.train(not run.recipe.frozen_statistics)
    sums = torch.zeros(2, device=run.engine.device)  # the loss and the right answers so far
    for step, (photos, labels) in enumerate(run.engine.batches(run.train, plan)):
        for group in run.optimizer.param_groups:
            group["lr"] = group["factor"] * run.recipe.learning_rate(
                run.args.lr, epoch - 1 + step / len(batches), run.args.epochs
            )
        truth = labels.to(run.engine.device)
        with run.engine.autocast(run.recipe.bfloat16):
            logits = run.learner(photos.to(run.engine.device))
        losses = nn.functional.cross_entropy(logits.float(), truth, reduction="none")
        own = len(run.engine.share(batches[step])) > 0
        # The engine averages over the processes; together they take the mean over the batch.
        loss = losses.sum() * own * run.engine.world / len(batches[step])
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        sums += own * torch.stack([losses.detach().sum(), (logits.argmax(1) == truth).sum()])
        bar.update()
    loss_sum, right = run.engine.sum(sums.cpu()).tolist()
    row = {"epoch": epoch, "loss": loss_sum / len(order), "accuracy": right / len(order)}
    finish_epoch(run, row, started, bar)


def finish_epoch(run: Run, row: dict[str, float], started: float, bar: "tqdm[Any]") -> None:
    """Check with the validation photos, and save all that the epoch has brought."""
    with run.engine.autocast(run.recipe.bfloat16):
        logits = run.engine.run(run.network, run.val)
    loss, accuracy = metrics.loss_and_accuracy(logits, torch.tensor(run.val.labels))
    state = run.state
    improved = not state.history or accuracy > state.best_accuracy
    row |= {"val_loss": loss, "val_accuracy": accuracy, "seconds": time.perf_counter() - started}
    state.history.append(row)
    state.last = {k: v.detach().cpu().clone() for k, v in run.network.state_dict().items()}
    state.best = state.last if improved else state.best
    state.optimizer = run.optimizer.state_dict()
    if run.engine.rank != 0:
        return
    checkpoint.save(run.path, state)
    report.write_history(run.path, state)
    if run.args.tensorboard:
        report.log_tensorboard(run.path, row)
    bar.write(
        f"epoch {row['epoch']:2}/{run.args.epochs}"
        f"  train loss {row['loss']:.3f} accuracy {row['accuracy']:.3f}"
        f"  val loss {loss:.3f} accuracy {accuracy:.3f}"
        f"{' *' if improved else '  '} {row['seconds']:5.1f} s"
    )


def finish(run: Run) -> None:
    """Say how good it got and what comes next; pack it, where that is wanted."""
    state, path = run.state, run.path
    if run.args.resumed and (
        not path.exists() or checkpoint.load(path).arguments != state.arguments
    ):
        checkpoint.save(path, state)  # no epoch was left to train, but its place or photos moved
    alone = Engine(run.engine.device)  # the other processes have gone
    measured = report.write(path, state, alone, run.val)
    print(
        f"\nbest validation accuracy {measured['accuracy']:.4f}, in epoch {state.best_epoch} of"
        f" {state.epoch}\nreport: {report.folder_of(path) / 'report.html'}\ncheckpoint: {path}"
    )
    if wants_bento(run.args.save_to_bento):
        import saveToBento  # noqa: PLC0415  (slow to import, and not always needed)

        saveToBento.main([str(path)])
    else:
        print(f"\nNext: python saveToBento.py {shlex.quote(str(path))}")


def wants_bento(answer: str) -> bool:
    """Ask whether to pack the result, when run from a terminal."""
    if answer == "ask" and sys.stdin.isatty() and sys.stdout.isatty():
        try:
            answer = input("\nSave it into BentoML now? [Y/n] ").strip().lower() or "yes"
        except (EOFError, KeyboardInterrupt):
            print()
    return answer in {"y", "yes"}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # for logs
    try:
        main()
    except StackError as error:
        sys.exit(f"error: {error}")
