"""Where a training runs: its device, fast numerics, and the processes that share the work."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from simplestack.serving.cgroup import cores
from simplestack.serving.errors import StackError

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """This process: its device and precision, and its rank among those that train together."""

    device: torch.device
    rank: int = 0
    world_size: int = 1  # processes, on all machines together
    dtype: torch.dtype = torch.float32  # of the forward pass

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """The scaler that keeps small float16 gradients from vanishing; else a no-op."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    @classmethod
    def start(cls, device_name: str, mixed_precision: bool) -> Self:
        """Choose the device, and join the other processes if torchrun started this one.

        The forward pass is in 16 bits if that is allowed and the device is faster with it. Raises
        StackError if this machine has no such device.
        """
        device = choose_device(device_name)
        dtype = precision(device) if mixed_precision else torch.float32
        torch.set_num_threads(min(torch.get_num_threads(), cores()))
        if not dist.is_torchelastic_launched():
            return cls(device, dtype=dtype)
        backend = "gloo"
        if device.type == "cuda":
            local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            device = torch.device("cuda", local_rank % gpus)
            torch.cuda.set_device(device)
            if int(os.environ["LOCAL_WORLD_SIZE"]) <= gpus:  # nccl takes one process per GPU
                backend = "nccl"
        dist.init_process_group(backend)
        return cls(device, dist.get_rank(), dist.get_world_size(), dtype)

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

    def progress(self, items: Iterable[Item], description: str, total: int) -> Iterable[Item]:
        """Wrap items in the first process's progress bar, if it runs on a terminal."""
        disable = True if self.rank else None  # None: unless on a terminal
        return tqdm(items, description, total, leave=False, disable=disable)

    def autocast(self) -> torch.autocast:
        """Return the context of the forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def share(self, items: Tensor) -> Tensor:
        """Return this process's share of the items."""
        return items[self.rank :: self.world_size]

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_batch_norm(self, model: nn.Module) -> None:
        """Copy the batch norm statistics of the first process, whose model is saved, to all."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def memory(self, budget: float) -> float:
        """Return this process's share of the machine's memory budget."""
        return budget / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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
            " the best one"
        ) from error
    return device


def precision(device: torch.device) -> torch.dtype:
    """Return the fastest type that a device has instructions for; emulated ones are slower."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16"):
        return torch.bfloat16
    return torch.float32
