"""Checkpoints: written whole or not at all, and foreign ones rejected."""

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import PROJECT

from simplestack.serving.errors import StackError
from simplestack.training import checkpoint
from simplestack.training.checkpoint import Checkpoint


def test_a_disk_that_fills_up_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.save(path, Checkpoint(["a", "b"], {}, {}, "the old one", {}))
    code = """
import sys, torch
from pathlib import Path
from simplestack.training import checkpoint
weights = {"weights": torch.zeros(1_000_000)}
checkpoint.save(Path(sys.argv[1]), checkpoint.Checkpoint(["a", "b"], {}, {}, "", {}, weights))
"""

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-c", code, path],
        cwd=PROJECT,
        preexec_fn=small_disk,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "what was there before is untouched" in done.stderr
    assert torch.load(path, weights_only=True)["notice"] == "the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_ctrl_c_while_a_checkpoint_is_written_is_no_full_disk(tmp_path: Path) -> None:
    path, part = tmp_path / "a.ckpt", tmp_path / "a.ckpt.part"
    checkpoint.save(path, Checkpoint(["a", "b"], {}, {}, "the old one", {}))
    os.mkfifo(part)  # a disk that takes the first bytes, then waits

    def press() -> None:
        with part.open("rb") as file:
            file.read(1)
            os.kill(os.getpid(), signal.SIGINT)

    presses = threading.Thread(target=press)
    presses.start()
    weights = {"weights": torch.zeros(1_000_000)}
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, Checkpoint(["a", "b"], {}, {}, "", {}, weights))
    presses.join()
    assert torch.load(path, weights_only=True)["notice"] == "the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_the_tutorials_own_checkpoints_are_rejected_with_the_remedy(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    path = tmp_path / "tutorial.ckpt"
    torch.save(
        {"model": layer.state_dict(), "optimizer": torch.optim.SGD(layer.parameters())}, path
    )
    with pytest.raises(StackError, match=r"2020 tutorial.*train again with `python train.py`"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"param_groups": []},
        {"param_groups": [{"params": [0, 1]}]},
        {"param_groups": [{"params": [0, 1], "lr": "fast"}]},
        {"state": {0: {"momentum_buffer": torch.zeros(3)}}},
        {"state": {0: {"momentum_buffer": "none"}}},
        {"state": [1]},
    ],
    ids=["no groups", "no lr", "a text for a number", "another shape", "no tensor", "a list"],
)
def test_a_crafted_optimizer_is_one_clear_line(changed: dict[str, Any]) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1, momentum=0.9)
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    checkpoint.restore_optimizer(optimizer, state)
    with pytest.raises(StackError, match="damaged"):
        checkpoint.restore_optimizer(optimizer, {**state, **changed})


@pytest.mark.parametrize("data", [b"<!DOCTYPE html>", b"{}", b"\xff\xd8\xff\xe0"])
def test_another_file_is_not_called_a_pickle(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(data)
    with pytest.raises(StackError, match="not a checkpoint"):
        checkpoint.load(path)
