"""Fine-tune ResNet-18 on a folder of photos.

    python train.py                                  # 25 epochs on data/, GPU if there is one
    python train.py --epochs 3 --output quick.ckpt   # a short run
    python train.py -c saved_models/NAME.ckpt        # go on where that run stopped

The photos lie in data/train/CLASS/ and data/val/CLASS/; every class folder is a label.
After each epoch the checkpoint in saved_models/ is written anew. It holds the weights of the last
and of the best epoch, so Ctrl-C costs at most the epoch under way.
"""

import argparse
import math
import os
import platform
import signal
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from simplestack import StackError, checkpoint, data, model
from simplestack.checkpoint import Checkpoint

SAVED_MODELS = Path("saved_models")
MOMENTUM = 0.9
LR_STEP, LR_FACTOR = 7, 0.1  # epochs between two steps of the learning rate, and their factor
EVALUATION_BATCH = 32  # photos; has no influence on the result
FIXED = ("batch_size", "lr", "seed", "from_scratch")  # what a resumed run can't change
KEPT = ("data_dir", "epochs", *FIXED)  # the arguments that a checkpoint remembers

Batches = DataLoader[tuple[Tensor, int]]  # in fact N×224×224×3 uint8, and N int64


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; a resumed run takes what isn't given from its checkpoint."""
    parser = argparse.ArgumentParser(
        description="Fine-tune ResNet-18 on a folder of photos: data/train/CLASS/ to learn from,"
        " data/val/CLASS/ to check with. Each class folder is a label.",
        epilog="Next: python saveToBento.py",
    )
    add = parser.add_argument
    add("-c", "--checkpoint", type=Path, help="go on with the run that wrote this checkpoint")
    add("--data-dir", type=Path, default=Path("data"), help="the photos (default: data)")
    add("--epochs", type=int, default=25, help="passes over the photos (default: 25)")
    add("--batch-size", type=int, default=4, help="photos per step (default: 4)")
    add(
        "--lr",
        type=float,
        default=0.001,
        help="learning rate of SGD with momentum 0.9; a tenth after every 7 epochs"
        " (default: 0.001)",
    )
    add(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps … (default: a GPU if there is one)"
    )
    add("--seed", type=int, default=0, help="the same seed gives the same run (default: 0)")
    add(
        "--from-scratch",
        action="store_true",
        help="start from random weights, not from ImageNet's: needs no download, learns far less",
    )
    add(
        "--output", type=Path, help="the checkpoint to write (default: saved_models/DATE-TIME.ckpt)"
    )
    add(
        "--save-to-bento",
        choices=("yes", "no", "ask"),
        default="ask",
        help="pack the result for serving at the end (default: ask, or no without a terminal)",
    )
    parser.set_defaults(resumed=None)
    args = parser.parse_args(argv)
    for name in ("epochs", "batch_size", "lr"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be more than 0")
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
    return args


def choose_device(name: str) -> torch.device:
    """Find the device to train on. Raises StackError where this machine doesn't have it."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise StackError(
            f"--device {name}: PyTorch finds no such device here; leave --device out to use"
            " what there is"
        ) from error
    return device


def main(argv: list[str] | None = None) -> None:
    """Train, from the command line to the checkpoint."""
    args = parse_arguments(argv)
    classes = data.find_classes(args.data_dir)
    device = choose_device(args.device)
    train = data.Photos(args.data_dir / "train", classes, training=True)
    val = data.Photos(args.data_dir / "val", classes, training=False)
    # A GPU gets its photos from processes beside it, so as not to wait for them.
    workers = 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
    train_batches: Batches = DataLoader(train, args.batch_size, shuffle=True, num_workers=workers)
    val_batches: Batches = DataLoader(val, EVALUATION_BATCH, num_workers=workers)
    torch.manual_seed(args.seed)
    network = build_network(args, classes).to(memory_format=torch.channels_last).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=args.lr, momentum=MOMENTUM)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, LR_STEP, LR_FACTOR)
    state = args.resumed or new_checkpoint(args, classes)
    state.arguments["epochs"] = args.epochs
    if args.resumed:
        network.load_state_dict(state.last)
        optimizer.load_state_dict(state.optimizer)
        scheduler.load_state_dict(state.scheduler)

    path = args.output or SAVED_MODELS / f"{datetime.now():%Y%m%d-%H%M%S}{checkpoint.SUFFIX}"
    if path.exists() and path != args.checkpoint:
        raise StackError(f"{path} exists: choose another --output, or go on with -c {path}")
    if state.notice:
        print(f"note: {state.notice}", file=sys.stderr)
    print(
        f"{len(train)} photos to learn from, {len(val)} to check with; {', '.join(classes)};"
        f" on {device_name(device)}"
    )
    try:
        with tqdm(
            total=args.epochs * len(train_batches),
            initial=state.epoch * len(train_batches),
            unit="step",
            disable=None,  # where there is no terminal
        ) as bar:
            for epoch in range(state.epoch + 1, args.epochs + 1):
                # All that is random in an epoch follows from this, so a resumed run is the same.
                torch.manual_seed(args.seed * 100_003 + epoch)
                bar.set_description(f"epoch {epoch}/{args.epochs}")
                started = time.perf_counter()
                loss, accuracy = train_epoch(network, train_batches, optimizer, device, bar)
                val_loss, val_accuracy = evaluate(network, val_batches, device)
                scheduler.step()

                improved = not state.history or val_accuracy > state.best_accuracy
                state.history.append(
                    {
                        "loss": loss,
                        "accuracy": accuracy,
                        "val_loss": val_loss,
                        "val_accuracy": val_accuracy,
                        "seconds": time.perf_counter() - started,
                    }
                )
                state.last = {k: v.cpu().clone() for k, v in network.state_dict().items()}
                state.best = state.last if improved else state.best
                state.optimizer = optimizer.state_dict()
                state.scheduler = scheduler.state_dict()
                checkpoint.save(path, state)
                bar.write(
                    f"epoch {epoch:2}/{args.epochs}  train loss {loss:.3f} accuracy {accuracy:.3f}"
                    f"  val loss {val_loss:.3f} accuracy {val_accuracy:.3f}"
                    f"{' *' if improved else '  '} {state.history[-1]['seconds']:5.1f} s"
                )
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        if state.epoch:
            print(
                f"The {state.epoch} finished epochs are in {path}; to go on:\n"
                f"  python train.py -c {path}",
                file=sys.stderr,
            )
        sys.exit(130)
    finish(args, state, path)


def finish(args: argparse.Namespace, state: Checkpoint, path: Path) -> None:
    """Say how good it got and what comes next; pack it, where that is wanted."""
    print(
        f"\nbest validation accuracy {state.best_accuracy:.4f}, in epoch {state.best_epoch} of"
        f" {state.epoch}\ncheckpoint: {path}"
    )
    if wants_bento(args.save_to_bento):
        import saveToBento  # noqa: PLC0415  (slow to import, and not always needed)

        saveToBento.main([str(path)])
    else:
        print(f"\nNext: python saveToBento.py {path}")


def build_network(args: argparse.Namespace, classes: list[str]) -> model.Classifier:
    """Build the network with the weights to start from; a resumed run brings its own."""
    if args.resumed and args.resumed.classes != classes:
        raise StackError(
            f"{args.checkpoint} knows {', '.join(args.resumed.classes)}, but {args.data_dir} has"
            f" {', '.join(classes)}: name the folder it was trained on with --data-dir"
        )
    if args.resumed or args.from_scratch:
        return model.Classifier(len(classes))
    return model.pretrained(len(classes))


def new_checkpoint(args: argparse.Namespace, classes: list[str]) -> Checkpoint:
    """Describe a run in which nothing has been learnt yet."""
    kept = {name: getattr(args, name) for name in KEPT}
    return Checkpoint(
        classes=classes,
        arguments={n: str(v) if isinstance(v, Path) else v for n, v in kept.items()},
        notice=notice(args),
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
    )


def notice(args: argparse.Namespace) -> str:
    """Say what people must know of this model before they trust it; "" if nothing."""
    start = "from random weights" if args.from_scratch else "from ImageNet weights"
    if data.is_sample(args.data_dir):
        return f"A demonstration: trained {start} on drawn pictures, knows nothing of real photos."
    if args.from_scratch:
        return f"Trained {start} instead of ImageNet's: expect many mistakes."
    return ""


def train_epoch(
    network: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    bar: "tqdm[Any]",
) -> tuple[float, float]:
    """Take one step a batch; give the mean loss and the accuracy on the way."""
    network.train()
    loss_sum, correct, seen = 0.0, 0, 0
    for photos, labels in batches:
        logits = network(photos.to(device))
        loss = nn.functional.cross_entropy(logits, labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(labels)
        correct += int((logits.argmax(1).cpu() == labels).sum())
        seen += len(labels)
        bar.update()
    return loss_sum / seen, correct / seen


@torch.inference_mode()
def evaluate(network: nn.Module, batches: Batches, device: torch.device) -> tuple[float, float]:
    """Give the mean loss and the accuracy on photos that are not learnt from."""
    network.eval()
    loss_sum, correct, seen = 0.0, 0, 0
    for photos, labels in batches:
        logits = network(photos.to(device)).cpu()
        loss_sum += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
    return loss_sum / seen, correct / seen


def device_name(device: torch.device) -> str:
    """Name the device as people know it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else str(device)


def wants_bento(answer: str) -> bool:
    """Ask whether to pack the result, where there is someone to ask."""
    if answer == "ask" and sys.stdin.isatty() and sys.stdout.isatty():
        try:
            answer = input("\nSave it into BentoML now? [Y/n] ").strip().lower() or "yes"
        except (EOFError, KeyboardInterrupt):
            print()
    return answer in {"y", "yes"}


def interrupt(*_: object) -> None:
    """Let SIGTERM end a run as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    try:
        main()
    except StackError as error:
        sys.exit(f"error: {error}")
