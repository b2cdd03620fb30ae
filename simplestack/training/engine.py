"""Where a training runs: the device, its fast numerics, and the processes that share the work."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from simplestack.serving.errors import StackError
from simplestack.training.data import Photos, View
from simplestack.training.model import Classifier

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
EVAL_BATCH = 32  # photos; has no influence on the result
MAX_WORKERS = 8  # processes that read photos


@dataclass(frozen=True)
class Engine:
    """This process: its device, and its rank among the processes that train together."""

    device: torch.device
    rank: int = 0
    world_size: int = 1  # processes, on all machines together

    @classmethod
    def start(cls, device_name: str) -> Self:
        """Choose the device, and join the other processes if torchrun started this one.

        Raises StackError if this machine has no such device.
        """
        device = choose_device(device_name)
        if not dist.is_torchelastic_launched():
            return cls(device)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(device, dist.get_rank(), dist.get_world_size())

    def stop(self) -> None:
        """Leave the other processes, if there are any."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def __str__(self) -> str:
        name = str(self.device)
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        elif self.device.type == "cpu":
            name = f"{torch.get_num_threads()} CPU threads"
        return name if self.world_size == 1 else f"{self.world_size} processes of {name}"

    def autocast(self, enabled: bool = True) -> contextlib.AbstractContextManager[Any]:
        """Compute in bfloat16 if the device has instructions for it, else in float32."""
        if enabled and has_bfloat16(self.device):
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def share(self, items: Sequence[int]) -> Sequence[int]:
        """Return this process's share of the items."""
        return items[self.rank :: self.world_size]

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a CPU tensor over all processes, in place."""
        if self.world_size > 1:
            total = tensor.to(self.device)
            dist.all_reduce(total)
            tensor.copy_(total)
        return tensor

    def parallel(self, model: nn.Module) -> nn.Module:
        """Wrap the model so that the processes average their gradients in every step."""
        return model if self.world_size == 1 else DistributedDataParallel(model)

    def memory(self, budget: float) -> float:
        """Return this process's share of the machine's memory budget."""
        return budget / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def batches(self, photos: Photos, plan: list[list[View]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Return an iterator over the planned batches: N×224×224×3 uint8 photos, N int64 labels.

        Worker processes read the photos unless all are in memory.
        """
        workers = 0 if photos.cached else min(MAX_WORKERS, os.cpu_count() or 1)
        loader = DataLoader(
            photos, batch_sampler=plan, num_workers=workers, worker_init_fn=_ignore_stop_signals
        )
        with held_signals() if workers else contextlib.nullcontext():
            return iter(loader)

    @torch.no_grad()
    def predict(self, model: Classifier, photos: Photos, *, features: bool = False) -> Tensor:
        """Return the logits, N×C, or the features, N×512, of all photos: float32, on the CPU.

        Every process computes its share and gets all of them.
        """
        model.eval()
        forward = model.features if features else model
        width = model.resnet.fc.in_features if features else model.resnet.fc.out_features
        outputs = torch.zeros(len(photos), width)
        shares = torch.tensor(self.share(range(len(photos)))).split(EVAL_BATCH)
        plan: list[list[View]] = [[(i, None) for i in share.tolist()] for share in shares]
        for share, (batch, _) in zip(shares, self.batches(photos, plan), strict=True):
            outputs[share] = forward(batch.to(self.device)).float().cpu()
        return self.sum(outputs)


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back: while Python forks, it would drop their exception."""
    received: list[int] = []
    handlers = {
        s: signal.signal(s, lambda number, _: received.append(number)) for s in STOP_SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


def _ignore_stop_signals(_: int) -> None:
    """Leave Ctrl-C and SIGTERM to the main process, which then ends its workers."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def choose_device(name: str) -> torch.device:
    """Return the device to train on. Raises StackError if this machine doesn't have it."""
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
    """Return whether the device has bfloat16 instructions; emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return False
