"""Checkpoints: written whole or not at all, resumed if that makes sense, foreign ones rejected."""

import copy
import math
import os
import pickle
import platform
import re
import resource
import signal
import threading
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torchvision
from helpers import split_folder, write_pictures
from trainings import same_weights

from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, model, sample
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.options import merge, parse_arguments

pytestmark = pytest.mark.usefixtures("small")


def row(epoch: int, accuracy: float = 0.5, loss: float = 1.0) -> dict[str, float]:
    measured = {"loss": 2.0, "accuracy": 0.5, "val_loss": loss, "val_accuracy": accuracy}
    return {"epoch": epoch, **measured, "seconds": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos of each class for training and one for validation."""
    return split_folder(tmp_path_factory.mktemp("checkpoint") / "photos", 2, 1)


@pytest.fixture(scope="module")
def made(folder: Path, small: None) -> Checkpoint:  # noqa: ARG001
    """What is left of a run of one epoch."""
    state = checkpoint.new(merge(parse_arguments(["--data-dir", str(folder)]), {}))
    network = model.Classifier(2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    state.add_epoch(row(1), network, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    return state


@pytest.fixture
def state(made: Checkpoint) -> Checkpoint:
    """One of one's own."""
    return copy.deepcopy(made)


def write(path: Path, notice: str = "the old one") -> Path:
    """Write a checkpoint of no run."""
    checkpoint.save(path, Checkpoint(["a", "b"], {}, {}, notice, {}))
    return path


# What is in it


def test_a_new_run_records_its_photos_and_what_its_result_depends_on(folder: Path) -> None:
    given = parse_arguments(["--data-dir", str(folder), "--seed", "3"])
    state = checkpoint.new(merge(given, {}))
    assert state.classes == ["ants", "bees"]
    assert [len(state.photos[split]) for split in ("train", "val")] == [4, 2]
    assert state.sizes == {
        name: (folder / name).stat().st_size for names in state.photos.values() for name in names
    }
    assert (state.arguments["data_dir"], state.arguments["seed"]) == (str(folder), 3)
    assert state.versions == {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    assert (state.epoch, state.notice, state.architecture) == (0, "", "resnet18")


def test_a_run_on_drawings_says_so(tmp_path: Path) -> None:
    (split_folder(tmp_path) / sample.NOTE).touch()
    state = checkpoint.new(merge(parse_arguments(["--data-dir", str(tmp_path)]), {}))
    assert "knows nothing of real photos" in state.notice


def test_the_split_of_a_new_run_follows_from_its_seed(tmp_path: Path) -> None:
    write_pictures(tmp_path, 10)
    given = (parse_arguments(["--data-dir", str(tmp_path), "--seed", seed]) for seed in "0015")
    first, again, *others = (checkpoint.new(merge(g, {})).photos["val"] for g in given)
    assert first == again
    assert first not in others


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([(0.5, 1.0)], 0),
        ([(0.5, 1.0), (0.75, 2.0), (0.25, 0.5)], 1),  # the most accurate
        ([(0.5, 1.0), (0.5, 0.5), (0.5, 0.7)], 1),  # of those, the one with the lowest loss
        ([(0.5, 1.0), (0.5, 1.0)], 0),  # of those, the first
        ([(0.5, 1.0), (0.6, 9.0), (0.7, 8.0)], 2),
    ],
)
def test_the_best_epoch_is_the_most_accurate(rows: list[tuple[float, float]], best: int) -> None:
    history = [row(epoch, *measured) for epoch, measured in enumerate(rows)]
    state = Checkpoint(["a", "b"], {}, {}, "", {}, history=history)
    assert (state.best_epoch, state.best_accuracy) == (best, rows[best][0])
    assert state.epoch == len(rows) - 1


def test_the_weights_of_the_best_epoch_and_of_the_last_are_kept() -> None:
    state = Checkpoint(["a", "b"], {}, {}, "", {})
    layer = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=8)
    for epoch, accuracy in enumerate((0.5, 0.75, 0.25)):
        optimizer.zero_grad()
        layer(torch.ones(1)).backward()
        optimizer.step()
        layer.weight.data.fill_(epoch)
        state.add_epoch(row(epoch, accuracy), layer, optimizer, scaler)
    layer.weight.data.fill_(9)  # training goes on, and the checkpoint stays as it is
    assert (state.best["weight"].item(), state.last["weight"].item()) == (1, 2)
    assert not state.last["weight"].requires_grad
    assert state.optimizer["state"][0]["momentum_buffer"].item() == pytest.approx(1 + 0.9 + 0.81)
    assert state.scaler["scale"] == 8
    assert [r["epoch"] for r in state.history] == [0, 1, 2]


@pytest.mark.parametrize("name", ["loss", "val_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_epoch_whose_loss_is_not_finite_is_not_taken(
    state: Checkpoint, name: str, value: float
) -> None:
    layer, before = torch.nn.Linear(1, 1), copy.deepcopy(state)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1)
    said = r"the loss of epoch 2 isn't finite: the learning rate 0\.0003 is too high"
    with pytest.raises(StackError, match=said):
        state.add_epoch(
            {**row(2), name: value}, layer, optimizer, torch.amp.GradScaler("cpu", enabled=False)
        )
    assert state.history == before.history
    assert same_weights(state.last, before.last)


# Files


def test_what_is_loaded_is_what_was_saved(state: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.ckpt"
    checkpoint.save(path, state)
    loaded = vars(checkpoint.load(path))
    assert same_weights(loaded.pop("last"), state.last)
    assert same_weights(loaded.pop("best"), state.best)
    assert loaded == {name: vars(state)[name] for name in loaded}
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]


def test_checkpoints_that_people_have_stay_readable(state: Checkpoint) -> None:
    assert (checkpoint.SUFFIX, state.format) == (".ckpt", 4)
    assert state.preprocessing == {
        **{"resize": 256, "crop": 224},
        **{"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    }


def test_a_disk_that_fills_up_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    weights = {"weights": torch.zeros(1_000_000)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            StackError, match=r"\(File too large\).*what was there before is untouched"
        ):
            checkpoint.save(path, Checkpoint(["a", "b"], {}, {}, "", {}, weights))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(path, weights_only=True)["notice"] == "the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_ctrl_c_while_a_checkpoint_is_written_is_no_full_disk(tmp_path: Path) -> None:
    path, part = write(tmp_path / "a.ckpt"), tmp_path / "a.ckpt.part"
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


@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("unknown"), "unknown"), (OSError(28, "No space left"), "No space left")],
)
def test_whatever_stops_the_writing_is_said(tmp_path: Path, error: Exception, said: str) -> None:
    path = tmp_path / "a.ckpt"
    with (
        patch.object(torch, "save", side_effect=error),
        pytest.raises(StackError, match=rf"can't write {path} \({said}\): make room, or name"),
    ):
        write(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.pt", "must end in .ckpt"),
        ("a", "must end in .ckpt"),
        ("there.ckpt", "exists: choose another --output, or resume with -c "),
        ("notes.ckpt", "notes is where the report goes: move that file"),
        ("notes/a.ckpt", "(Not a directory): name another place with --output"),
        ("a" * 300 + ".ckpt", "(File name too long): name another place with --output"),
        ("/proc/a.ckpt", "can't write /proc/a.ckpt ("),
        ("/proc/a/b.ckpt", "can't write /proc/a/b.ckpt ("),
    ],
)
def test_where_a_checkpoint_cannot_be_written_is_said_beforehand(
    tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "notes").write_text("buy honey")
    write(tmp_path / "there.ckpt")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StackError, match=re.escape(said)):
        checkpoint.check_output(tmp_path / name, replace=False)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["a.ckpt", "new/folder/a.ckpt"])
def test_where_a_checkpoint_can_be_written_nothing_is_yet(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()  # a report's folder
    checkpoint.check_output(tmp_path / name, replace=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_checkpoint_may_be_replaced_if_that_is_meant(tmp_path: Path) -> None:
    checkpoint.check_output(write(tmp_path / "a.ckpt"), replace=True)


def test_the_newest_checkpoint_is_the_one_that_was_written_last(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=rf"there is no checkpoint in {tmp_path}/: run `python tr"):
        checkpoint.newest(tmp_path)
    for name, time in (("b.ckpt", 2), ("a.ckpt", 3), ("c.ckpt", 1), ("d.txt", 4)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (9 - time, time))
    assert checkpoint.newest(tmp_path) == tmp_path / "a.ckpt"


# Foreign and damaged ones


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"there is no checkpoint .*/a\.ckpt: `python train\.py` makes one"),
        (b"<!DOCTYPE html>", "is not a checkpoint, whatever its name says"),
        (b"{}", "is not a checkpoint, whatever its name says"),
        (b"\xff\xd8\xff\xe0", "is not a checkpoint, whatever its name says"),
        (b"", r"is damaged or not a checkpoint \(EOFError\): use another one"),
        (pickle.dumps(Namespace(), 2), "holds pickled Python objects"),
        ({"weights": torch.zeros(3)}, r"is not a checkpoint of this version of train\.py"),
        (torch.zeros(3), r"is not a checkpoint of this version of train\.py"),
    ],
)
def test_what_is_no_checkpoint_is_one_clear_line(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "a.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(StackError, match=said):
        checkpoint.load(path)


def test_half_a_checkpoint_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StackError, match=r"damaged or not a checkpoint \(RuntimeError\)"):
        checkpoint.load(path)


def test_the_tutorials_own_checkpoints_are_rejected_with_the_remedy(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    state = {"epoch": 3, "model": layer.state_dict()}
    state["optimizer"] = torch.optim.SGD(layer.parameters())
    torch.save(state, tmp_path / "tutorial.ckpt")
    with pytest.raises(StackError, match=r"2020 tutorial.*train again with `python train.py`"):
        checkpoint.load(tmp_path / "tutorial.ckpt")


def change(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update(values)


def change_weights(which: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    names = {"head": "resnet.fc.bias"}
    return lambda state: state.update(
        {which: {**state[which], **{names.get(n, n): value for n, value in values.items()}}}
    )


VERSION, DAMAGED = "is not a checkpoint of this version", "is damaged: use another checkpoint"
NO_LOSS = {"epoch": 1, "val_accuracy": 0.5}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change(format=3), VERSION),
        (change(format=5), VERSION),
        (change(more=1), VERSION),
        (lambda state: state.pop("notice"), VERSION),
        (change(preprocessing={"resize": 232}), "was trained with other preprocessing"),
        (change(classes="ants"), DAMAGED),
        (change(classes=["ants", "wasps"]), DAMAGED),
        (change(classes=["ants", "bees", "wasps"]), DAMAGED),
        (change(notice=3), DAMAGED),
        (change(sizes={"a": "large"}), DAMAGED),
        (change(history=[]), DAMAGED),
        (change(history=[NO_LOSS]), DAMAGED),
        (change(history=[row(1), NO_LOSS]), DAMAGED),
        (change(history=[{"epoch": 1, "val_loss": 1.0}]), DAMAGED),
        (change(history=[{"val_accuracy": 0.5, "val_loss": 1.0}]), DAMAGED),
        (change(history=[row(1, math.nan)]), DAMAGED),
        (change(history=[row(1, loss=math.inf)]), DAMAGED),
        (lambda state: state["photos"].pop("val"), DAMAGED),
        (lambda state: state["photos"].update(train=[]), DAMAGED),
        (lambda state: state["photos"]["val"].append("val/wasps/0.png"), DAMAGED),
        (lambda state: state["arguments"].pop("seed"), DAMAGED),
        (lambda state: state["arguments"].update(more=1), DAMAGED),
        *(
            (lambda state, name=name: state["arguments"].update({name: None}), DAMAGED)
            for name in (
                *("data_dir", "epochs", "recipe", "batch_size", "lr", "seed", "from_scratch"),
                "class_weights",
            )
        ),
        *(
            damage
            for which in ("last", "best")
            for damage in (
                (change(**{which: {}}), DAMAGED),
                (change_weights(which, head=torch.zeros(3)), DAMAGED),
                (change_weights(which, head=torch.zeros(2, dtype=torch.float64)), DAMAGED),
                (change_weights(which, more=torch.zeros(2)), DAMAGED),
            )
        ),
        (change_weights("best", head=torch.tensor([0, math.nan])), DAMAGED),
        (change_weights("best", head=torch.tensor([0, math.inf])), DAMAGED),
    ],
)
def test_a_damaged_checkpoint_is_one_clear_line(
    state: Checkpoint, tmp_path: Path, damage: Callable[[dict[str, Any]], object], said: str
) -> None:
    path, values = tmp_path / "a.ckpt", vars(state)
    damage(values)
    torch.save(values, path)
    with pytest.raises(StackError, match=f"{path} {said}"):
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
        {"state": None},
    ],
    ids=["no groups", "no lr", "a text for a number", "another shape", "a text", "a list", "none"],
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


def test_an_optimizer_goes_on_with_the_momentum_that_was_saved() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    first, second = (torch.optim.SGD(layer.parameters(), lr=1, momentum=0.9) for _ in range(2))
    layer(torch.ones(1)).backward()
    first.step()
    checkpoint.restore_optimizer(second, first.state_dict())
    assert second.state[layer.weight]["momentum_buffer"].item() == 1


# Resume


@pytest.fixture
def run(state: Checkpoint, tmp_path: Path) -> tuple[Path, Path]:
    """The path of a run's checkpoint and the folder of its photos, which may be changed."""
    photos = split_folder(tmp_path / "photos", 2, 1)
    state.arguments.update(data_dir=str(photos), seed=3)
    checkpoint.save(tmp_path / "a.ckpt", state)
    return tmp_path / "a.ckpt", photos


def given(*words: object) -> Namespace:
    return parse_arguments([str(word) for word in words])


def test_without_a_checkpoint_nothing_is_resumed(tmp_path: Path) -> None:
    assert checkpoint.resume(given()) is None
    assert checkpoint.resume(given("--output", tmp_path / "a.ckpt", "--update")) is None


def test_a_run_is_resumed_from_its_checkpoint(run: tuple[Path, Path], tmp_path: Path) -> None:
    path, photos = run
    for words in (("-c", path), ("-c", path, "--output", tmp_path / "b.ckpt")):
        arguments = given(*words)
        assert checkpoint.resume(arguments).epoch == 1
        assert arguments.checkpoint == path
    arguments = given("--output", path, "--update")
    assert checkpoint.resume(arguments).epoch == 1
    assert arguments.checkpoint == path
    moved = photos.rename(tmp_path / "moved")
    assert checkpoint.resume(given("-c", path, "--data-dir", moved)).epoch == 1


def test_a_run_whose_photos_have_changed_is_not_resumed(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    path, photos = run
    (photos / "train" / "ants" / "1.png").rename(photos / "train" / "ants" / "x.png")
    said = rf"photos has changed since {path} was trained \(1 new photo, 1 gone\): to train anew on"
    with pytest.raises(StackError, match=rf"{said}.*, python train\.py.* --data-dir {photos}"):
        checkpoint.resume(given("-c", path))
    moved = photos.rename(tmp_path / "moved")
    with pytest.raises(StackError, match=rf"python (?=.* --seed 3).* --data-dir {moved}"):
        checkpoint.resume(given("-c", path, "--data-dir", moved))


def test_a_run_whose_photos_have_changed_is_evaluated(run: tuple[Path, Path]) -> None:
    path, photos = run
    (photos / "train" / "ants" / "1.png").unlink()
    assert checkpoint.resume(given("-c", path, "--evaluate")).epoch == 1


def test_an_update_trains_anew_if_photos_have_changed_with_what_was_given_before(
    run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, photos = run
    write_pictures(photos / "train", 3)
    write_pictures(photos / "train", 1, ("a\x1b[31m",))
    write_pictures(photos / "val", 1, ("a\x1b[31m",))
    arguments = given("--output", path, "--update", "--lr", 0.002)
    assert checkpoint.resume(arguments) is None
    said = r"photos has changed: 4 new photos, new class a\x1b[31m. Training anew."
    assert capsys.readouterr().out.strip() == f"{photos.parent}/{said}"
    assert "checkpoint" not in arguments
    options = merge(arguments, {})
    assert (options.seed, options.lr, options.data_dir) == (3, 0.002, photos)
