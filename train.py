"""Fine-tune ResNet-18 on a folder of photos.

    python train.py                                  # data/, on the GPU if there is one
    python train.py --freeze                         # only the head: seconds
    python train.py --recipe tutorial                # the tutorial's 25 epochs, as published
    python train.py -c saved_models/NAME.ckpt        # resume that run
    python train.py --evaluate -c saved_models/NAME.ckpt
    torchrun --nproc_per_node=2 train.py             # several processes, GPUs or machines

The photos are in data/CLASS/, or in data/train/CLASS/ and data/val/CLASS/. Each epoch replaces the
checkpoint in saved_models/; finally, its report is written into the folder of the same name.
"""

import argparse
import math
import os
import shlex
import sys
import time
from collections.abc import Iterable

from simplestack import cli
from simplestack.training.options import Options, merge, parse_arguments

if __name__ == "__main__":
    ARGS = parse_arguments()  # before the imports below, which take seconds
    cli.start("torch")  # is it installed? Errors, Ctrl-C and SIGTERM end with one line from now on
    # Let idle OpenMP threads sleep; spinning ones take cores from other programs.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from simplestack.report import report
from simplestack.training import checkpoint, console, dataset
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.dataset import Batch, training_batches
from simplestack.training.distributed import World
from simplestack.training.evaluate import cache_frozen_outputs, evaluate
from simplestack.training.metrics import loss_and_accuracy
from simplestack.training.model import Classifier, fit_head, pretrained
from simplestack.training.recipes import MOMENTUM, RECIPES


def main(args: argparse.Namespace) -> None:
    """Train, or evaluate a checkpoint; print the result and the next command."""
    resumed = checkpoint.resume(args)  # of -c, or with --update of --output; None: start (over)
    options = merge(args, resumed.arguments if resumed else {})  # exits if they are invalid
    path = options.output
    if resumed and options.evaluate:
        report.evaluate_checkpoint(options, resumed)
        return
    # Better to fail now than after the training.
    checkpoint.check_output(path, replace=options.update or path == options.checkpoint)
    is_complete = resumed and resumed.epoch >= options.epochs and report.page(path).exists()
    if options.update and is_complete:
        print(f"{path} is trained on these photos already: nothing to do.")
        return
    state = resumed or checkpoint.begin(options)  # lists the photos and splits them
    world = World.start(options.device, RECIPES[options.recipe].mixed_precision)
    try:
        with checkpoint.lock(path, world.rank):
            if resumed and (path != options.checkpoint or state.arguments != options.recorded()):
                state.arguments = options.recorded()  # saved even if no epoch is left to train
                checkpoint.save(path, state, world.rank)
            train(options, state, world)
            world.stop()
            if world.rank == 0:
                finish(options)
    except KeyboardInterrupt:
        hint = f"To go on after the last finished epoch:\n  {options.resume_command()}"
        raise KeyboardInterrupt(hint if state.has_begun and path.exists() else "") from None


def train(options: Options, state: Checkpoint, world: World) -> None:
    """Train from the photos to the checkpoint; after a resume, as if it had never stopped."""
    recipe = RECIPES[options.recipe]
    train_photos, val_photos = dataset.load_photos(options, state, world)  # drops unusable ones

    # Model, criterion, optimizer, scheduler: the learning rate follows from the step
    torch.manual_seed(options.seed % 2**64)  # for new weights; crops have their own generator
    create = Classifier if state.has_begun or options.from_scratch else pretrained
    model = create(len(state.classes)).freeze(recipe.frozen_stages)
    model.to(memory_format=torch.channels_last).to(world.device)
    console.print_start(options.output, state, train_photos, val_photos, world)
    report.page(options.output).unlink(missing_ok=True)  # it shows earlier epochs
    class_weights = train_photos.class_weights() if options.class_weights else None  # on the CPU
    criterion = nn.CrossEntropyLoss(class_weights, reduction="sum").to(world.device)
    optimizer = SGD(model.parameter_groups(options.lr, recipe.head_lr_scale), momentum=MOMENTUM)
    state.restore(model, optimizer, world.scaler)  # a new run has nothing to restore
    steps = math.ceil(len(train_photos) / options.batch_size)  # per epoch
    last_step = state.epoch * steps - 1  # -1: none yet
    scheduler = LambdaLR(optimizer, lambda n: recipe.lr_scale(n / steps, options.epochs), last_step)
    ddp_model = DistributedDataParallel(model) if world.world_size > 1 else model
    val_frozen = cache_frozen_outputs(model, val_photos, world)  # None if photos aren't in memory

    # Epoch 0 fits only the head; the others train all stages that aren't frozen
    for epoch in range(state.next_epoch, options.epochs + 1):
        started = time.perf_counter()
        if epoch == 0:
            features, _ = evaluate(model, train_photos, world)  # every process fits the same head
            loss, accuracy = fit_linear_probe(model, features, train_photos.labels, class_weights)
        else:
            ddp_model.train(not recipe.frozen_statistics)  # else eval mode keeps ImageNet's
            loss, accuracy = train_one_epoch(
                model=ddp_model,
                batches=training_batches(train_photos, epoch, options, world),
                criterion=criterion,
                optimizer=optimizer,
                scheduler=scheduler,
                world=world,
            )
        val_features, val_logits = evaluate(model, val_photos, world, frozen=val_frozen)
        if epoch == 0:
            state.features = torch.cat([features, val_features])  # for the report's label check
        state.add_epoch(epoch, (loss, accuracy), val_logits, val_photos.labels, started)
        state.keep(model, optimizer, world.scaler)  # as the last epoch, and if it is the best
        if epoch == options.epochs and not recipe.linear_probe:  # the best epoch's features instead
            model.load_state_dict(state.best)
            splits = [evaluate(model, photos, world)[0] for photos in (train_photos, val_photos)]
            state.features = torch.cat(splits)
        checkpoint.save(options.output, state, world.rank)
        if world.rank == 0:
            print(console.format_epoch(state))


def fit_linear_probe(
    model: Classifier, features: Tensor, targets: Tensor, class_weights: Tensor | None
) -> tuple[float, float]:
    """Fit the head to N×512 features and N class indices; return the mean loss and the accuracy.

    The probe has an L2 penalty; the loss is measured without it and without class weights.
    Fine-tuning from there distorts the features less (Kumar et al. 2022, "Fine-Tuning can Distort
    Pretrained Features").
    """
    head = fit_head(features, targets, model.resnet.fc.out_features, class_weights)
    model.resnet.fc.load_state_dict(head.state_dict())
    return loss_and_accuracy(head(features), targets)


def train_one_epoch(
    *,
    model: nn.Module,
    batches: Iterable[Batch],
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LambdaLR,
    world: World,
) -> tuple[float, float]:
    """Train on each batch once; return the mean loss and the accuracy, with augmentation."""
    sums = torch.zeros(2, device=world.device)  # of the losses, and of correct predictions
    count = 0
    for batch in batches:
        with world.autocast():
            logits = model(batch.photos)  # it normalises them
        loss = batch.is_counted * criterion(logits.float(), batch.targets)
        # DDP averages gradients over the processes: with this scale, they are the batch's mean.
        optimizer.zero_grad()
        world.scaler.scale(loss * world.world_size / batch.global_size).backward()
        world.scaler.step(optimizer)
        world.scaler.update()
        scheduler.step()
        correct = batch.is_counted * (logits.argmax(1) == batch.targets).sum()
        sums += torch.stack([loss.detach(), correct])
        count += batch.global_size
    world.broadcast_batch_norm(model)  # DDP does so before each step, not after the last
    loss_sum, correct_sum = world.sum(sums).tolist()  # one transfer from the device
    return loss_sum / count, correct_sum / count


def finish(options: Options) -> None:
    """Write the report, print the result and the next command; pack the checkpoint if wanted."""
    path = options.output
    state = report.write(path)
    print(f"\nbest validation accuracy {console.format_best(state)}")
    print(f"report: {report.page(path)}\ncheckpoint: {path}")
    if console.wants_bento(options.save_to_bento):
        import saveToBento  # noqa: PLC0415  (slow to import, and not always needed)

        saveToBento.main([str(path)])
    else:
        cli.print_next(f"python saveToBento.py {shlex.quote(str(path))}")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # for logs
    main(ARGS)
