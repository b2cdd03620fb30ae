"""Where a training runs: its device, the numerics that the device is fast at, its processes."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from simplestack.serving.errors import StackError
from simplestack.training import model
from simplestack.training.data import Photos, View

STOPS = (signal.SIGINT, signal.SIGTERM)
BATCH = 32  # photos at once where nothing is learnt; has no influence on the result

Batches = Iterator[tuple[Tensor, Tensor]]  # N×224×224×3 uint8, and N int64


@dataclass(frozen=True)
class Engine:
    """This process: what it computes on, and which part of the work is its own."""

    device: torch.device
    rank: int = 0
    world: int = 1  # processes, on all machines together

    def __str__(self) -> str:
        """Name the device as people know it."""
        name = str(self.device)
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        elif self.device.type == "cpu":
            name = f"{torch.get_num_threads()} CPU threads"
        return name if self.world == 1 else f"{self.world} processes of {name}"

    def autocast(self, enabled: bool = True) -> contextlib.AbstractContextManager[Any]:
        """Compute in bfloat16 where the device has instructions for it, else as it is, float32."""
        if enabled and has_bfloat16(self.device):
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def share(self, items: Sequence[int]) -> Sequence[int]:
        """Return this process's part of the items."""
        return items[self.rank :: self.world]

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a CPU tensor over all processes, in place."""
        if self.world > 1:
            total = tensor.to(self.device)
            dist.all_reduce(total)
            tensor.copy_(total)
        return tensor

    def parallel(self, network: nn.Module) -> nn.Module:
        """Let the processes average their gradients in every step."""
        return network if self.world == 1 else DistributedDataParallel(network)

    def memory(self, budget: float) -> float:
        """Return this process's part of a budget for the whole machine."""
        return budget / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def batches(self, photos: Photos, plan: list[list[View]]) -> Batches:
        """Return the photos of each batch in the plan.

        Photos in memory come from there; others are read by processes beside this one.
        """
        workers = 0 if photos.cached else min(8, os.cpu_count() or 1)
        loader = DataLoader(
            photos, batch_sampler=plan, num_workers=workers, worker_init_fn=_ignore_stops
        )
        with held_signals() if workers else contextlib.nullcontext():
            return iter(loader)

    @torch.no_grad()
    def run(self, network: model.Classifier, photos: Photos, *, features: bool = False) -> Tensor:
        """Return the logits, N×C, or the features, N×512, of all photos: float32, on the CPU.

        Every process computes its part and gets all.
        """
        network.eval()
        width = network.resnet.fc.in_features if features else network.resnet.fc.out_features
        outputs = torch.zeros(len(photos), width)
        mine = torch.tensor(self.share(range(len(photos))))
        plan = [part.tolist() for part in mine.split(BATCH)]
        views: list[list[View]] = [[(i, None) for i in part] for part in plan]
        for part, (pictures, _) in zip(plan, self.batches(photos, views), strict=True):
            seen = pictures.to(self.device)
            outputs[part] = (network.features(seen) if features else network(seen)).float().cpu()
        return self.sum(outputs)


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait: while a process is forked, Python would drop their exception."""
    came: list[int] = []
    usual = {s: signal.signal(s, lambda number, _: came.append(number)) for s in STOPS}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _ignore_stops(_: int) -> None:
    """Leave Ctrl-C and SIGTERM to the process that this one reads for, which then ends this one."""
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)


def start(name: str) -> Engine:
    """Find the device, and join the other processes where torchrun started this one.

    Raises StackError if this machine has no such device.
    """
    device = choose_device(name)
    if not dist.is_torchelastic_launched():
        return Engine(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Engine(device, dist.get_rank(), dist.get_world_size())


def stop() -> None:
    """Part from the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """Find the device to train on. Raises StackError if this machine doesn't have it."""
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


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether the device computes in bfloat16 itself: elsewhere it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return False
