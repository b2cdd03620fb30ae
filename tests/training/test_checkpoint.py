"""Checkpoints: written whole or not at all, resumed if that makes sense, foreign ones rejected."""

import copy
import math
import pickle
import platform
import re
import resource
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
import torchvision
from helpers import split_folder, write_pictures
from torch import zeros
from trainings import same_weights

from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, model, sample
from simplestack.training.checkpoint import Checkpoint
from simplestack.training.options import merge, parse_arguments

pytestmark = pytest.mark.usefixtures("small")
LABELS = torch.tensor([0, 0, 1, 1])


def logits(correct):
    """Logits of four photos, so many of them correct."""
    return 9 * torch.eye(2)[torch.where(torch.arange(4) < correct, LABELS, 1 - LABELS)]


def add(state, epoch, correct, *, layer, trained, loss=2.0):
    """Add an epoch, and keep its state."""
    state.add_epoch(epoch, (loss, 0.5), logits(correct), LABELS, started=0)
    state.keep(layer, *trained)


def given(*words):
    return parse_arguments([str(word) for word in words])


def new(folder, *words):
    return checkpoint.begin(merge(given("--data-dir", folder, *words), {}))


def taught(layer):
    """Return an optimizer with the momentum of a step of size 1 and a scaler."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=1, momentum=0.9)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer, torch.amp.GradScaler("cpu", init_scale=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return split_folder(tmp_path_factory.mktemp("checkpoint") / "photos", 2, 1)


@pytest.fixture
def state(folder):
    """The checkpoint of a run of one epoch."""
    state, network = new(folder, "--seed", 3, "--class-weights"), model.Classifier(2)
    add(state, 1, 2, layer=network, trained=taught(network))
    state.best = dict(state.best)  # not the same as the last
    return state


def write(path, disclaimer="the old one", **values):
    checkpoint.save(path, Checkpoint(["a", "b"], {}, {}, disclaimer, {}, **values))
    return path


def test_a_new_run_records_its_photos_and_what_its_result_depends_on(folder):
    state = new(folder, "--seed", 3)
    names = [f"{c}/{i}.png" for c in ("ants", "bees") for i in (0, 1)]
    assert state.photos == {
        "train": [f"train/{name}" for name in names],
        "val": [f"val/{name}" for name in names[::2]],
    }
    found = [name for part in state.photos.values() for name in part]
    assert state.sizes == {name: (folder / name).stat().st_size for name in found}
    assert (state.arguments["data_dir"], state.arguments["seed"]) == (str(folder), 3)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    assert state.versions == {"python": platform.python_version(), **versions}
    assert (state.classes, state.epoch, state.disclaimer) == (["ants", "bees"], 0, "")


def test_a_new_run_on_drawings_says_so_and_its_split_follows_from_its_seed(tmp_path):
    write_pictures(tmp_path, 10)
    (tmp_path / sample.NOTE).touch()
    first, again, *others = (new(tmp_path, "--seed", seed) for seed in (0, 0, 1, 5))
    assert "knows nothing of real photos" in first.disclaimer
    assert first.photos == again.photos
    assert first.photos not in [state.photos for state in others]


# The most accurate, of those the one with the lowest loss, of those the first.
@pytest.mark.parametrize(
    ("rows", "best"),
    [([(0.5, 1.0), (0.7, 2.0), (0.2, 0.5)], 1), ([(0.5, i) for i in (1.0, 0.5, 0.7, 0.5)], 1)],
)
def test_the_best_epoch_is_the_most_accurate(rows, best):
    names = ("val_accuracy", "val_loss")
    history = [{"epoch": i, **dict(zip(names, row, strict=True))} for i, row in enumerate(rows)]
    state = Checkpoint(["a", "b"], {}, {}, "", {}, history=history)
    found = (state.best_epoch, state.best_row["val_accuracy"], state.epoch)
    assert found == (best, rows[best][0], len(rows) - 1)


def test_the_state_of_the_best_epoch_and_of_the_last_are_kept_and_restored():
    state, layer = Checkpoint(["a", "b"], {}, {}, "", {}), torch.nn.Linear(1, 1, bias=False)
    trained = optimizer, scaler = taught(layer)
    for epoch, correct in ((0, 2), (1, 3), (2, 2)):
        optimizer.step()
        layer.weight.data.fill_(epoch)
        add(state, epoch, correct, layer=layer, trained=trained)
    layer.weight.data.fill_(9)  # training goes on, and the checkpoint stays as it is
    assert (state.best["weight"].item(), state.last["weight"].item()) == (1, 2)
    assert not state.last["weight"].requires_grad
    assert torch.equal(state.val_logits, logits(3))
    assert state.scaler["scale"] == 8
    rows = [(row["epoch"], row["val_accuracy"]) for row in state.history]
    assert rows == [(0, 0.5), (1, 0.75), (2, 0.5)]
    new = torch.optim.SGD(layer.parameters(), lr=1, momentum=0.9)
    state.restore(layer, new, scaler)
    assert layer.weight.item() == 2
    assert new.state[layer.weight]["momentum_buffer"].item() == pytest.approx(3.439)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_an_epoch_whose_loss_is_not_finite_is_not_taken(state, loss):
    before, layer = copy.deepcopy(state), torch.nn.Linear(1, 1)
    said = r"the loss of epoch 2 isn't finite: the learning rate 0\.0003 is too high"
    with pytest.raises(StackError, match=said):
        add(state, 2, 2, layer=layer, trained=taught(layer), loss=loss)
    assert state.history == before.history
    assert same_weights(state.last, before.last)


def test_a_loaded_checkpoint_equals_the_saved_one(state, tmp_path):
    path = tmp_path / "new" / "a.ckpt"
    checkpoint.save(path, state)
    loaded = vars(checkpoint.load(path))
    for name in ("last", "best"):
        assert same_weights(loaded.pop(name), getattr(state, name))
    for name in ("features", "val_logits"):
        assert torch.equal(loaded.pop(name), getattr(state, name))
    buffers = [x["state"][0]["momentum_buffer"] for x in (loaded.pop("optimizer"), state.optimizer)]
    assert torch.equal(*buffers)
    assert loaded == {name: vars(state)[name] for name in loaded}
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]


def test_checkpoints_that_people_have_stay_readable(state):
    assert (checkpoint.SUFFIX, state.format, state.architecture) == (".ckpt", 5, "resnet18")
    statistics = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert state.preprocessing == {"resize": 256, "crop": 224, **statistics}


def test_a_disk_that_fills_up_leaves_the_previous_checkpoint(tmp_path):
    path, limits = write(tmp_path / "a.ckpt"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'"):
            write(path, "new", last={"weights": zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(path, weights_only=True)["disclaimer"] == "the old one"
    assert list(path.parent.iterdir()) == [path]


def test_an_output_is_checked_without_a_write(tmp_path):
    (tmp_path / "a").mkdir()  # a report's folder
    write(tmp_path / "there.ckpt")
    before = sorted(tmp_path.iterdir())
    for name, said in {
        "a.pt": "must end in .ckpt",
        "there.ckpt": "exists: choose another --output, or resume with -c ",
    }.items():
        with pytest.raises(StackError, match=re.escape(said)):
            checkpoint.check_output(tmp_path / name, replace=False)
    for name, there in (("a.ckpt", False), ("new/folder/a.ckpt", False), ("there.ckpt", True)):
        checkpoint.check_output(tmp_path / name, replace=there)
    assert sorted(tmp_path.iterdir()) == before


LINEAR = torch.nn.Linear(2, 2)
TUTORIALS = {"epoch": 3, "model": LINEAR.state_dict(), "optimizer": taught(LINEAR)[0]}
VERSION = r"is not a checkpoint of this version of train\.py"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"there is no checkpoint .*/a\.ckpt: `python train\.py` makes one"),
        (b"<!DOCTYPE html>", "is not a checkpoint, or"),
        (b"\xff\xd8\xff\xe0", "is not a checkpoint, or"),
        (b"", r"is damaged or not a checkpoint \(RuntimeError\): use another one"),  # half of one
        (pickle.dumps(Namespace(), 2), "holds pickled Python objects"),
        (TUTORIALS, r"2020 tutorial.*train again with `python train.py`"),
        ({"weights": zeros(3)}, VERSION),
        ({"format": 4}, VERSION),
        (zeros(3), VERSION),
    ],
)
def test_a_foreign_or_damaged_file_is_one_clear_line(tmp_path, content, said):
    path = tmp_path / "a.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content or write(path).read_bytes()[:1000])
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(StackError, match=said):
        checkpoint.load(path)


def test_a_checkpoint_with_other_preprocessing_is_one_clear_line(state, tmp_path):
    checkpoint.save(path := tmp_path / "a.ckpt", replace(state, preprocessing={}))
    with pytest.raises(StackError, match=f"{path} was trained with other preprocessing"):
        checkpoint.load(path)


@pytest.fixture
def run(state, tmp_path):
    """The path of a run's checkpoint and the folder of its photos, which may be changed."""
    photos = split_folder(tmp_path / "photos", 2, 1)
    state.arguments["data_dir"] = str(photos)
    checkpoint.save(tmp_path / "a.ckpt", state)
    return tmp_path / "a.ckpt", photos


def test_a_run_is_resumed_from_its_checkpoint(run, tmp_path):
    assert checkpoint.resume(given()) is None
    assert checkpoint.resume(given("--output", tmp_path / "new.ckpt", "--update")) is None
    path, photos = run
    another = ("-c", path, "--output", tmp_path / "b.ckpt")
    for words in (("-c", path), another, ("--output", path, "--update")):
        arguments = given(*words)
        assert checkpoint.resume(arguments).epoch == 1
        assert arguments.checkpoint == path
    moved = photos.rename(tmp_path / "moved")
    assert checkpoint.resume(given("-c", path, "--data-dir", moved)).epoch == 1


def test_a_run_whose_photos_have_changed_is_evaluated_but_not_resumed(run, tmp_path):
    path, photos = run
    (photos / "train" / "ants" / "1.png").rename(photos / "train" / "ants" / "x.png")
    said = (
        rf"photos has changed since {path} was trained \(1 new photo, 1 gone\): to train again on"
    )
    with pytest.raises(StackError, match=rf"{said}.*, python train\.py.* --data-dir {photos}"):
        checkpoint.resume(given("-c", path))
    assert checkpoint.resume(given("-c", path, "--evaluate")).epoch == 1
    moved = photos.rename(tmp_path / "moved")
    with pytest.raises(StackError, match=rf"python (?=.* --seed 3).* --data-dir {moved}"):
        checkpoint.resume(given("-c", path, "--data-dir", moved))


def test_an_update_retrains_with_the_recorded_options_if_photos_have_changed(run, state, capsys):
    path, photos = run
    write_pictures(photos / "train", 3)
    for split in ("train", "val"):
        write_pictures(photos / split, 1, ("a\x1b[31m",))
    arguments = given("--output", path, "--update", "--lr", 0.002)
    assert checkpoint.resume(arguments) is None
    said = r"photos has changed: 4 new photos, new class a\x1b[31m. Training again."
    assert capsys.readouterr().out.strip() == f"{photos.parent}/{said}"
    assert "checkpoint" not in arguments
    assert merge(arguments, {}).recorded() == {**state.arguments, "lr": 0.002}


def test_an_update_retrains_if_it_is_to_weigh_classes_for_the_first_time(run, state, capsys):
    path, _ = run
    state.arguments["class_weights"] = False
    checkpoint.save(path, state)
    words = ("--output", path, "--update", "--class-weights")
    arguments = given(*words)
    assert checkpoint.resume(arguments) is None
    assert (
        capsys.readouterr().out == f"{path} was trained without --class-weights. Training again.\n"
    )
    state.arguments = merge(arguments, {}).recorded()
    checkpoint.save(path, state)
    assert checkpoint.resume(given(*words)).epoch == checkpoint.resume(given(*words[:3])).epoch == 1


def test_an_update_retrains_over_a_checkpoint_of_another_version(run, state, capsys):
    path, photos = run
    checkpoint.save(path, replace(state, format=4))
    assert checkpoint.resume(given("--output", path, "--update", "--data-dir", photos)) is None
    assert capsys.readouterr().out == f"{path} is of another version of train.py. Training again.\n"
