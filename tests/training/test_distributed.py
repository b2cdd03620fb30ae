"""Several processes, on one machine and on two, train as one does."""

from pathlib import Path

import pytest
import torch
from helpers import split_folder
from trainings import start_training, train_in_process

from simplestack.packing import local_server
from simplestack.training import checkpoint, dataset, distributed, evaluate, metrics
from simplestack.training.checkpoint import Checkpoint

SCRIPT = "train.py"
TORCHRUN = ("-m", "torch.distributed.run")
ONE_MACHINE = (*TORCHRUN, "--standalone", "--nproc_per_node=2", SCRIPT)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint, str]:
    """Train once with one process and once with two, 9 photos in batches of 4 each time."""
    folder = tmp_path_factory.mktemp("distributed")
    photos = split_folder(folder / "photos")
    (photos / "train" / "ants" / "0.png").unlink()  # the last batch has 1 photo for 2 processes
    arguments = ("--data-dir", photos, "--epochs", 2, "--batch-size", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        one = train_in_process(folder / "one.ckpt", *arguments)
        process = start_training(*arguments, "--output", folder / "two.ckpt", program=ONE_MACHINE)
        said, _ = process.communicate()
        assert process.returncode == 0, said
    return one, checkpoint.load(folder / "two.ckpt"), said


def test_two_processes_end_with_nearly_the_weights_of_one(
    both: tuple[Checkpoint, Checkpoint, str],
) -> None:
    one, two, _ = both
    assert all(torch.allclose(one.last[k], two.last[k], atol=1e-4) for k in one.last)


def test_two_processes_end_with_the_accuracy_of_one(
    both: tuple[Checkpoint, Checkpoint, str],
) -> None:
    one, two, _ = both
    assert [r["val_accuracy"] for r in one.history] == [r["val_accuracy"] for r in two.history]


def test_what_several_processes_measure_is_what_is_saved(tmp_path: Path) -> None:
    photos, path = split_folder(tmp_path / "photos", 6, 6), tmp_path / "two.ckpt"
    arguments = ("--data-dir", photos, "--from-scratch", "--epochs", 1, "--lr", 0.1)
    process = start_training(*arguments, "--output", path, program=ONE_MACHINE)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    state = checkpoint.load(path)  # whose batch norm has statistics of its own photos
    val = dataset.Photos(photos, state.photos["val"], state.classes, whole=False)
    world = distributed.World(torch.device("cpu"))
    plan = torch.arange(len(val))
    pixels = torch.stack([val[i] for i in plan.tolist()])
    with torch.no_grad():
        logits = evaluate.load_best(state, world)(pixels)
    loss, _ = metrics.loss_and_accuracy(logits, val.labels)
    assert loss == pytest.approx(state.history[-1]["val_loss"], rel=1e-3)


def test_two_machines_end_with_nearly_the_weights_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    photos, path = split_folder(tmp_path / "photos"), tmp_path / "two.ckpt"
    arguments = ("--data-dir", photos, "--epochs", 1, "--batch-size", 4)
    one = train_in_process(tmp_path / "one.ckpt", *arguments)
    meet = ("--nnodes=2", "--master_addr=127.0.0.1", f"--master_port={local_server.free_port()}")
    machines = [
        start_training(
            *arguments, "--output", path, program=(*TORCHRUN, *meet, f"--node_rank={i}", SCRIPT)
        )
        for i in range(2)
    ]
    said = [machine.communicate()[0] for machine in machines]
    assert ["best validation accuracy" in text for text in said] == [True, False], said
    two = checkpoint.load(path)
    assert all(torch.allclose(one.last[k], two.last[k], atol=1e-4) for k in one.last)


def test_only_one_process_prints(both: tuple[Checkpoint, Checkpoint, str]) -> None:
    assert both[2].count("\nbest validation accuracy") == 1


def test_weights_change_between_epochs(both: tuple[Checkpoint, Checkpoint, str]) -> None:
    first, then = (
        weights["resnet.layer4.0.conv1.weight"] for weights in (both[1].best, both[1].last)
    )
    assert not torch.equal(first, then)


def test_a_cpu_without_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with distributed.World(torch.device("cpu")).autocast(mixed_precision=True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_each_process_takes_its_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert distributed.World(torch.device("cpu"), 0, 4).memory(2e9) == 5e8
