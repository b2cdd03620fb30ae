"""Fine-tune ResNet-18 on a folder of photos.

    python train.py                                  # data/, on the GPU if there is one
    python train.py --freeze                         # only the head: seconds
    python train.py --recipe tutorial                # the tutorial's 25 epochs, as published
    python train.py -c saved_models/NAME.ckpt        # resume that run
    python train.py --evaluate -c saved_models/NAME.ckpt
    torchrun --nproc_per_node=2 train.py             # several processes, GPUs or machines

The photos are in data/CLASS/, or in data/train/CLASS/ and data/val/CLASS/. Each class folder is a
label. After each epoch the checkpoint in saved_models/ is replaced. It holds the weights of the
last and of the best epoch, so a crash costs at most the current epoch. The folder beside it, of the
same name, holds history.csv, metrics.json and report.html.
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

from simplestack.serving.errors import StackError, printable
from simplestack.training import data, report
from simplestack.training.arguments import parse_arguments, recorded
from simplestack.training.checkpoint import (
    SUFFIX,
    Checkpoint,
    check_output,
    load,
    restore_optimizer,
    save,
    versions,
)
from simplestack.training.engine import Engine
from simplestack.training.evaluate import best_model, evaluate
from simplestack.training.metrics import format_metrics, loss_and_accuracy
from simplestack.training.model import Classifier, pretrained
from simplestack.training.recipe import RECIPES, Recipe

SAVED_MODELS = Path("saved_models")
GB = 1e9  # bytes


@dataclass
class Run:
    """A training run, at the state that its checkpoint describes."""

    args: argparse.Namespace
    recipe: Recipe
    engine: Engine
    train: data.Photos
    val: data.Photos
    model: Classifier
    optimizer: torch.optim.Optimizer
    checkpoint: Checkpoint
    path: Path


def main(argv: list[str] | None = None) -> None:
    """Train, from the command line to the checkpoint and the report."""
    args = parse_arguments(argv)
    path = args.output or SAVED_MODELS / f"{datetime.now():%Y%m%d-%H%M%S}{SUFFIX}"
    if not args.evaluate:  # better to fail now than after the training
        check_output(path, resumed=path == args.checkpoint)
    if args.tensorboard:
        report.summary_writer()
    try:
        run = prepare(args, Engine.start(args.device), path)
        if args.evaluate:
            print_metrics(run)
        else:
            fit(run)
    except KeyboardInterrupt:
        command = f"python train.py -c {shlex.quote(str(path))}"
        hint = f" To go on after the last finished epoch:\n  {command}"
        print(f"\nStopped.{hint if path.exists() else ''}", file=sys.stderr)
        sys.exit(130)


def prepare(args: argparse.Namespace, engine: Engine, path: Path) -> Run:
    """Read the photos, build the model, and restore the state of a resumed run."""
    recipe = RECIPES[args.recipe]
    checkpoint = args.resumed or new_checkpoint(args)
    if args.resumed:
        data.check_recorded(args.data_dir, checkpoint.photos)
    train, val, warnings = data.open_photos(
        args.data_dir,
        checkpoint.photos,
        checkpoint.classes,
        augment=recipe.augmentation(),
        budget=engine.memory(args.cache * GB),
        device=engine.device,
    )
    torch.manual_seed(args.seed % 2**64)
    build_model = Classifier if args.resumed or args.from_scratch else pretrained
    model = build_model(len(checkpoint.classes))
    model = model.to(memory_format=torch.channels_last).to(engine.device)
    optimizer = recipe.optimizer(model, args.lr)
    if args.resumed:
        model.load_state_dict(checkpoint.last)
        restore_optimizer(optimizer, checkpoint.optimizer)
        if args.epochs != checkpoint.arguments["epochs"] and recipe.cosine and checkpoint.epoch:
            warnings.append("--epochs has changed: from here, lr decays over the new number")
    checkpoint.arguments = recorded(args)
    checkpoint.photos = {"train": train.names, "val": val.names}
    if engine.rank == 0:
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if checkpoint.notice:
            print(f"note: {printable(checkpoint.notice)}", file=sys.stderr)
        print(
            f"{len(train)} training photos, {len(val)} validation photos;"
            f" {printable(', '.join(checkpoint.classes))}; on {engine}"
        )
    return Run(args, recipe, engine, train, val, model, optimizer, checkpoint, path)


def new_checkpoint(args: argparse.Namespace) -> Checkpoint:
    """Return the checkpoint of a run that has not begun."""
    classes = data.find_classes(args.data_dir)
    return Checkpoint(
        classes=classes,
        photos=data.find_photos(args.data_dir, classes, args.seed),
        arguments=recorded(args),
        notice=data.disclaimer(args.data_dir, args.from_scratch),
        versions=versions(),
    )


def print_metrics(run: Run) -> None:
    """Evaluate the best epoch of the checkpoint."""
    model = best_model(run.checkpoint, run.engine)
    metrics, _ = evaluate(model, run.checkpoint, run.engine, run.val)
    if run.engine.rank == 0:
        print(format_metrics(metrics))
    run.engine.stop()


def fit(run: Run) -> None:
    """Train epoch by epoch, then report."""
    done, epochs = run.checkpoint.epoch, run.args.epochs
    steps = math.ceil(len(run.train) / run.args.batch_size)  # per epoch
    disable = True if run.engine.rank else None  # None: unless on a terminal
    model = run.engine.parallel(run.model)
    with tqdm(total=epochs * steps, unit="step", disable=disable) as bar:
        bar.update(done * steps)
        if run.recipe.linear_probe and not run.checkpoint.history:
            fit_linear_probe(run, bar)
        for epoch in range(done + 1, epochs + 1):
            bar.set_description(f"epoch {epoch}/{epochs}")
            train_epoch(run, model, epoch, bar)
    run.engine.stop()
    if run.engine.rank == 0:
        finish(run)


def fit_linear_probe(run: Run, bar: "tqdm[Any]") -> None:
    """Fit the head to the frozen features of the photos, without augmentation: epoch 0."""
    started = time.perf_counter()
    with run.engine.autocast(run.recipe.bfloat16):
        features = run.engine.predict(run.model, run.train, features=True)
    targets = torch.tensor(run.train.labels)
    logits = run.model.fit_linear_probe(features, targets)
    loss, accuracy = loss_and_accuracy(logits, targets)
    finish_epoch(run, {"epoch": 0, "loss": loss, "accuracy": accuracy}, started, bar)


def train_epoch(run: Run, model: nn.Module, epoch: int, bar: "tqdm[Any]") -> None:
    """Train on all photos once, in an order and with random crops that follow from the seed."""
    started, engine = time.perf_counter(), run.engine
    seed = (run.args.seed * 100_003 + epoch) % 2**64
    order = torch.randperm(len(run.train), generator=torch.Generator().manual_seed(seed))
    batches = [batch.tolist() for batch in order.split(run.args.batch_size)]
    # If the last batch has no photo for a process, it computes one with no weight.
    shares = [engine.share(batch) or batch[:1] for batch in batches]
    plan = [[(i, seed * 1_000_003 + i) for i in share] for share in shares]
    model.train(not run.recipe.frozen_statistics)
    sums = torch.zeros(2, device=engine.device)  # of the losses, and of correct predictions
    for step, (photos, labels) in enumerate(engine.batches(run.train, plan)):
        done = epoch - 1 + step / len(batches)
        for group in run.optimizer.param_groups:
            lr = run.recipe.learning_rate(run.args.lr, done, run.args.epochs)
            group["lr"] = group["factor"] * lr
        targets = labels.to(engine.device)
        with engine.autocast(run.recipe.bfloat16):
            logits = model(photos.to(engine.device))
        losses = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        weight = len(engine.share(batches[step])) > 0
        # DDP averages gradients over the processes; scaled like this, that is the batch's mean.
        loss = losses.sum() * weight * engine.world_size / len(batches[step])
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        correct = (logits.argmax(1) == targets).sum()
        sums += weight * torch.stack([losses.detach().sum(), correct])
        bar.update()
    loss_sum, correct_sum = engine.sum(sums.cpu()).tolist()
    photo_count = len(run.train)
    row = {"epoch": epoch, "loss": loss_sum / photo_count, "accuracy": correct_sum / photo_count}
    finish_epoch(run, row, started, bar)


def finish_epoch(run: Run, row: dict[str, float], started: float, bar: "tqdm[Any]") -> None:
    """Validate, and save the checkpoint and the history."""
    with run.engine.autocast(run.recipe.bfloat16):
        logits = run.engine.predict(run.model, run.val)
    loss, accuracy = loss_and_accuracy(logits, torch.tensor(run.val.labels))
    checkpoint = run.checkpoint
    improved = not checkpoint.history or accuracy > checkpoint.best_accuracy
    row |= {"val_loss": loss, "val_accuracy": accuracy, "seconds": time.perf_counter() - started}
    checkpoint.history.append(row)
    checkpoint.last = {k: v.detach().cpu().clone() for k, v in run.model.state_dict().items()}
    checkpoint.best = checkpoint.last if improved else checkpoint.best
    checkpoint.optimizer = run.optimizer.state_dict()
    if run.engine.rank != 0:
        return
    save(run.path, checkpoint)
    report.write_history(run.path, checkpoint.history)
    if run.args.tensorboard:
        report.log_tensorboard(run.path, row)
    bar.write(
        f"epoch {row['epoch']:2}/{run.args.epochs}"
        f"  train loss {row['loss']:.3f} accuracy {row['accuracy']:.3f}"
        f"  val loss {loss:.3f} accuracy {accuracy:.3f}"
        f"{' *' if improved else '  '} {row['seconds']:5.1f} s"
    )


def finish(run: Run) -> None:
    """Write the report, print the result and the next command, and pack it if wanted."""
    checkpoint, path = run.checkpoint, run.path
    if run.args.resumed and (not path.exists() or load(path).arguments != checkpoint.arguments):
        save(path, checkpoint)  # no epoch was left to train, but --output or --data-dir changed
    engine = Engine(run.engine.device)  # the other processes have left
    metrics = report.write_report(path, checkpoint, engine, run.val)
    print(
        f"\nbest validation accuracy {metrics['accuracy']:.4f}, in epoch {checkpoint.best_epoch} of"
        f" {checkpoint.epoch}\nreport: {report.report_folder(path) / 'report.html'}"
        f"\ncheckpoint: {path}"
    )
    if not wants_bento(run.args.save_to_bento):
        print(f"\nNext: python saveToBento.py {shlex.quote(str(path))}")
        return
    import saveToBento  # noqa: PLC0415  (slow to import, and not always needed)

    saveToBento.main([str(path)])


def wants_bento(answer: str) -> bool:
    """Return whether to pack the result; ask on a terminal."""
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
