"""Fine-tune ResNet-18 on a folder of photos.

    python train.py                                  # data/, on the GPU if there is one
    python train.py --freeze                         # only the head: seconds
    python train.py --recipe tutorial                # the tutorial's 25 epochs, as published
    python train.py -c saved_models/NAME.ckpt        # resume that run
    python train.py --evaluate -c saved_models/NAME.ckpt
    torchrun --nproc_per_node=2 train.py             # several processes, GPUs or machines

The photos are in data/CLASS/, or in data/train/CLASS/ and data/val/CLASS/. Each class folder is a
label. After each epoch the checkpoint in saved_models/ is replaced, so a crash costs at most the
current epoch. The report is in the folder beside it, of the same name.
"""

import argparse
import math
import os
import shlex
import sys
import time
from typing import Any

from simplestack import cli
from simplestack.training.options import Options, merge, parse_arguments

if __name__ == "__main__":
    GIVEN = parse_arguments()  # before the imports below, which take seconds
    cli.start("torch")
    # OpenMP's threads sleep until work comes: spinning, they take the cores of those who have some.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import nn
from tqdm import tqdm

from simplestack.report import label_check, report
from simplestack.training import augment, checkpoint, console, dataset, metrics
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.dataset import Photos
from simplestack.training.distributed import World
from simplestack.training.evaluate import evaluate, frozen_outputs, load_best, predict
from simplestack.training.model import Classifier, pretrained
from simplestack.training.recipes import MOMENTUM, RECIPES, Recipe

GB = 1e9  # bytes


def main(given: argparse.Namespace) -> None:
    """Train, or evaluate a checkpoint; print what came of it and the next command."""
    resumed = checkpoint.resume(given)
    options = merge(given, resumed.arguments if resumed else {})
    path = options.output
    if not options.evaluate:  # better to fail now than after the training
        checkpoint.check_output(path, replace=options.update or path == options.checkpoint)
    other = path.stat().st_mtime_ns if path.exists() and not resumed else 0
    if options.tensorboard:
        report.summary_writer()
    try:
        if resumed and options.evaluate:
            evaluate(options, resumed)
        elif resumed and options.update and report.is_complete(path, resumed, options.epochs):
            print(f"{path} has learned from these photos already: nothing to do.")
        else:
            train(options, resumed)
    except KeyboardInterrupt:
        hint = f"To go on after the last finished epoch:\n  {options.resume_command()}"
        saved = path.exists() and path.stat().st_mtime_ns != other
        raise KeyboardInterrupt(hint if saved else "") from None


def train(options: Options, resumed: Checkpoint | None) -> None:  # noqa: PLR0912, PLR0915  (a script)
    """Train from the photos to the report."""
    # Data
    recipe, path = RECIPES[options.recipe], options.output
    folder = report.report_folder(path)
    world = World.start(options.device)
    state = resumed or checkpoint.new(options)
    budget = world.memory(options.cache * GB)
    photos, val_photos = dataset.open_photos(
        options.data_dir, state.photos, state.classes, budget=budget, device=world.device
    )
    writer = None
    if options.tensorboard and world.rank == 0:
        writer = report.summary_writer()(folder / "tensorboard")
    state.photos = {"train": photos.names, "val": val_photos.names}
    state.arguments = options.recorded()

    # Model, loss, optimizer
    torch.manual_seed(options.seed % 2**64)
    build = Classifier if resumed or options.from_scratch else pretrained
    model_without_ddp = build(len(state.classes))
    model_without_ddp.to(memory_format=torch.channels_last).to(world.device)
    model_without_ddp.freeze(recipe.frozen_stages)
    class_weights = photos.class_weights() if options.class_weights else None
    criterion = nn.CrossEntropyLoss(class_weights, reduction="sum").to(world.device)
    optimizer = build_optimizer(model_without_ddp, recipe, options.lr)
    scaler = world.grad_scaler(recipe.mixed_precision)

    # Resume; the learning rate follows from the step
    if resumed:
        model_without_ddp.load_state_dict(state.last)
        checkpoint.restore_optimizer(optimizer, state.optimizer)
        if state.scaler:  # else it was on a device that needs none
            scaler.load_state_dict(state.scaler)
    steps = math.ceil(len(photos) / options.batch_size)  # per epoch
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: recipe.lr_scale(step / steps, options.epochs),
        last_epoch=state.epoch * steps - 1,
    )
    model = world.parallel(model_without_ddp)
    if world.rank == 0:
        report.page(path).unlink(missing_ok=True)  # that of the epochs before
        file = report.write_skipped(folder, dataset.skipped(photos, val_photos), options.checkpoint)
        console.introduce(state, photos, val_photos, str(world), file)

    # Training
    first = 0 if recipe.linear_probe and not state.history else state.epoch + 1
    total, done = options.epochs * steps, state.epoch * steps
    disable = True if world.rank else None  # None: unless on a terminal
    best_logits = val_frozen = compared = None
    with tqdm(total=total, initial=done, unit="step", disable=disable) as bar:
        if recipe.frozen_stages and val_photos.in_memory is not None:
            bar.set_description("frozen stages")
            val_frozen = list(frozen_outputs(model_without_ddp, val_photos, world, recipe))
        for epoch in range(first, options.epochs + 1):
            started = time.perf_counter()
            bar.set_description(f"epoch {epoch}/{options.epochs}" if epoch else "linear probe")
            if epoch == 0:
                features, _ = predict(model_without_ddp, photos, world, recipe)
                logits = model_without_ddp.fit_linear_probe(features, photos.labels, class_weights)
                loss, accuracy = metrics.loss_and_accuracy(logits, photos.labels)
            else:
                loss, accuracy = train_one_epoch(
                    *(model, criterion, optimizer, scheduler, scaler),
                    *(photos, epoch, options, world, bar),
                )
            val_features, logits = predict(
                model_without_ddp, val_photos, world, recipe, frozen=val_frozen
            )
            if epoch == 0:
                compared = torch.cat([features, val_features])
            val_loss, val_accuracy = metrics.loss_and_accuracy(logits, val_photos.labels)
            row = {"epoch": epoch, "loss": loss, "accuracy": accuracy}
            row |= {"val_loss": val_loss, "val_accuracy": val_accuracy}
            row["seconds"] = time.perf_counter() - started
            state.add_epoch(row, model_without_ddp, optimizer, scaler)
            best_logits = logits if state.best_row is row else best_logits
            if world.rank == 0:
                checkpoint.save(path, state)
                report.write_history(path, state.history, writer)
                bar.write(console.format_epoch(state))
    world.stop()

    # Report
    if world.rank == 0:
        if resumed and (not path.exists() or checkpoint.load(path).arguments != state.arguments):
            checkpoint.save(path, state)  # no epoch was left, but --output or --data-dir changed
        best, alone = load_best(state, world), World(world.device)
        if best_logits is None:  # the best epoch was before this run
            _, best_logits = predict(best, val_photos, alone, recipe)
        if compared is None:  # so was the linear probe, or there is none
            both = [predict(best, part, alone, recipe) for part in (photos, val_photos)]
            compared = torch.cat([features for features, _ in both])
        report.write_history(path, state.history)
        found = label_check.find(compared, photos, val_photos)
        measured = report.write_report(
            path, state, best, val_photos, best_logits, suspicious=found, on=str(world)
        )
        finish(options, state, measured)


def train_one_epoch(  # noqa: PLR0917  (as in PyTorch's examples)
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    scaler: torch.amp.GradScaler,
    photos: Photos,
    epoch: int,
    options: Options,
    world: World,
    bar: "tqdm[Any]",
) -> tuple[float, float]:
    """Train on all photos once; return the mean loss and the accuracy, with augmentation."""
    recipe = RECIPES[options.recipe]
    model.train(not recipe.frozen_statistics)
    generator = augment.generator(options.seed, epoch)
    # Indices are on the device too: it would wait for each that came from the CPU.
    order = torch.randperm(len(photos), generator=generator).to(world.device)
    batches = order.split(options.batch_size)
    crops = augment.random_crops(photos.aspects, recipe.smallest_crop, generator).to(world.device)
    labels = photos.labels.to(world.device)
    # If the last batch has no photo for a process, it computes one with no weight.
    shares = [world.share(batch) for batch in batches]
    plan = [
        share if len(share) else batch[:1] for share, batch in zip(shares, batches, strict=True)
    ]
    sums = torch.zeros(2, device=world.device)  # of the losses, and of correct predictions
    for step, whole in enumerate(photos.batches(plan, world.device)):
        targets, weight = labels[plan[step]], len(shares[step]) > 0
        cropped = augment.crop(whole, crops[plan[step]], recipe.crop)
        with world.autocast(recipe.mixed_precision):
            logits = model(cropped)
        loss = weight * criterion(logits.float(), targets)
        # DDP averages gradients over the processes; scaled like this, that is the batch's mean.
        optimizer.zero_grad()
        scaler.scale(loss * world.world_size / len(batches[step])).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        sums += torch.stack([loss.detach(), weight * (logits.argmax(1) == targets).sum()])
        bar.update()
    world.share_statistics(model)
    loss_sum, correct = world.sum(sums).tolist()  # only now, it waits for the device
    return loss_sum / len(photos), correct / len(photos)


def build_optimizer(model: Classifier, recipe: Recipe, lr: float) -> torch.optim.SGD:
    """Return the optimizer of the body's and the head's parameters."""
    head = list(model.resnet.fc.parameters())
    body = [p for name, p in model.resnet.named_parameters() if not name.startswith("fc.")]
    rates = ((body, lr), (head, lr * recipe.head_lr))
    groups = [
        {"params": [p for p in parameters if p.requires_grad], "lr": rate, "initial_lr": rate}
        for parameters, rate in rates
    ]
    return torch.optim.SGD(groups, momentum=MOMENTUM)


def finish(options: Options, state: Checkpoint, measured: dict[str, Any]) -> None:
    """Print the result and the next command, and pack it if wanted."""
    path = options.output
    print(f"\nbest validation accuracy {console.format_best(state, measured['accuracy'])}")
    print(f"report: {report.page(path)}\ncheckpoint: {path}")
    if not console.wants_bento(options.save_to_bento):
        cli.print_next(f"python saveToBento.py {shlex.quote(str(path))}")
        return
    import saveToBento  # noqa: PLC0415  (slow to import, and not always needed)

    saveToBento.main([str(path)])


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # for logs
    main(GIVEN)
