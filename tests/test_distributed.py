import pytest
import torch
from small import run, split_folder, start, weights

from simplestack import checkpoint
from simplestack.checkpoint import Checkpoint

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint, str]:
    """Train once with one process and once with two, 9 photos in batches of 4 each time."""
    folder = tmp_path_factory.mktemp("distributed")
    photos = split_folder(folder / "photos")
    (photos / "train" / "ants" / "0.png").unlink()  # the last batch has 1 photo for 2 processes
    arguments = ("--data-dir", photos, "--epochs", 2, "--batch-size", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(weights(folder / "torch")))
        patch.setenv("OMP_NUM_THREADS", "1")
        one = run(folder / "one.ckpt", *arguments)
        process = start(*arguments, "--output", folder / "two.ckpt", program=TORCHRUN)
        said, _ = process.communicate()
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


def test_only_one_process_speaks(both: tuple[Checkpoint, Checkpoint, str]) -> None:
    assert both[2].count("best validation accuracy") == 1


def test_weights_do_change_on_the_way(both: tuple[Checkpoint, Checkpoint, str]) -> None:
    assert not torch.equal(both[1].last["resnet.conv1.weight"], both[1].best["resnet.conv1.weight"])


def test_each_process_takes_its_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from simplestack import engine  # noqa: PLC0415

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert engine.Engine(torch.device("cpu"), 0, 4).memory(2e9) == 5e8
