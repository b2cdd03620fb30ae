"""The device, its precision, and the share of one process. Several processes are in system."""

import pytest
import torch

from simplestack.serving.errors import StackError
from simplestack.training import distributed
from simplestack.training.distributed import World

CPU = torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda:99", "quantum"])
def test_missing_device_is_one_clear_line(device: str) -> None:
    with pytest.raises(StackError, match=f"--device {device}: PyTorch finds no such device"):
        distributed.choose_device(device)


def test_a_cpu_without_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with World(CPU).autocast(mixed_precision=True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_cpu_with_bfloat16_computes_in_it_if_the_recipe_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    for mixed, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with World(CPU).autocast(mixed_precision=mixed):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_each_process_takes_its_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert World(CPU).memory(2e9) == 2e9
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert World(CPU, 0, 4).memory(2e9) == 5e8


def test_the_processes_share_the_items() -> None:
    shares = [World(CPU, rank, 3).share(torch.arange(8)).tolist() for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]
