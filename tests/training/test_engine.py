"""Where a training runs: numerics, memory, signals."""

import signal

import pytest
import torch

from simplestack.training import engine


def test_a_cpu_without_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with engine.Engine(torch.device("cpu")).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_signal_that_comes_while_signals_are_held_comes_afterwards() -> None:
    with pytest.raises(KeyboardInterrupt), engine.held_signals():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        held = True
    assert held


def test_each_process_takes_its_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert engine.Engine(torch.device("cpu"), 0, 4).memory(2e9) == 5e8
