"""The precision of a device, and the share of one process."""

import pytest
import torch

from simplestack.training.distributed import World

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "mixed", "dtype"),
    [
        ({}, True, torch.float32),
        ({"avx512_bf16": True}, True, torch.bfloat16),
        ({"avx512_bf16": True}, False, torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_if_it_can_and_the_recipe_says_so(
    monkeypatch, capabilities, mixed, dtype
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with World.start("cpu", mixed).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_each_process_takes_its_part_of_the_memory_and_of_the_items(monkeypatch):
    assert World(CPU).memory(2e9) == 2e9
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert World(CPU, 0, 4).memory(2e9) == 5e8
    shares = [World(CPU, rank, 3).share(torch.arange(8)).tolist() for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]
