"""train.py: from photos to a checkpoint and its report, again and again, on a small network."""

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from helpers import write_pictures
from trainings import interrupted_in, run_training, same_weights, train_in_process

import train
from simplestack.report import label_check
from simplestack.report.report import load_best
from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, dataset, metrics
from simplestack.training.distributed import World
from simplestack.training.evaluate import evaluate
from simplestack.training.options import merge, parse_arguments

CPU, RUN = torch.device("cpu"), Path("a.ckpt")
pytestmark = pytest.mark.usefixtures("small", "run")


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):  # noqa: ARG001
    """A folder with photos/ and a.ckpt, a run of one epoch on them, named as if one were there."""
    folder = tmp_path_factory.mktemp("finished")
    write_pictures(folder / "photos", 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_in_process(RUN, "--data-dir", "photos", "--epochs", 1)
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of that folder, to be in."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


def test_a_run_ends_with_accuracy_report_checkpoint_and_next_command(run, capsys):
    run_training("--from-scratch", "--data-dir", "photos", "--epochs", 2)
    (path,) = run.glob("saved_models/*.ckpt")
    name, said = path.relative_to(run), capsys.readouterr().out
    assert re.search(r"^best validation accuracy [01]\.\d{4} \(\d of \d photos", said, re.MULTILINE)
    assert len(re.findall(r"^epoch  \d/2 ", said, re.MULTILINE)) == 2
    assert f"report: {name.with_suffix('')}/report.html\ncheckpoint: {name}\n" in said
    assert "Save it into BentoML" not in said  # there is no terminal
    assert said.endswith(f"python saveToBento.py {name}\n")
    assert (path.with_suffix("") / "report.html").exists()


def test_checkpoint_holds_the_run(run):
    state, world = checkpoint.load(RUN), World(CPU)
    assert (state.classes, state.epoch) == (["ants", "bees"], 1)
    best = max(state.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert state.best_accuracy == best["val_accuracy"]
    val = dataset.Photos(run / "photos", state.photos["val"], state.classes, whole=False)
    _, logits = evaluate(load_best(state), val, world)
    loss = pytest.approx(best["val_loss"], rel=1e-2)  # if computed in bfloat16
    assert metrics.loss_and_accuracy(logits, val.labels) == (loss, best["val_accuracy"])


def test_each_epoch_changes_the_weights():
    first = checkpoint.load(RUN).last
    then = train_in_process(RUN, "-c", RUN, "--epochs", 2)
    assert then.epoch == 2
    name = "resnet.layer4.0.conv1.weight"
    assert not torch.equal(first[name], then.last[name])


def test_of_several_processes_the_first_ones_statistics_are_kept(monkeypatch):
    monkeypatch.setattr(World, "parallel", lambda _, model: model)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda _: None)
    first = {0: 7}  # all that the first process has
    monkeypatch.setattr(torch.distributed, "broadcast", lambda x, rank: x.fill_(first[rank]))
    state = checkpoint.load(RUN)
    options = merge(parse_arguments(["-c", "a.ckpt", "--epochs", "2"]), state.arguments)
    state.arguments = options.recorded()
    train.train(options, state, World(CPU, 1, 2))
    assert {7} == {x for k, v in state.last.items() if "running" in k for x in v.unique().tolist()}


@pytest.mark.parametrize(("recipe", "epochs"), [("lp-ft", 4), ("tutorial", 3)])
def test_an_interrupted_and_resumed_run_ends_as_one_that_never_stopped(run, recipe, epochs):
    arguments = ("--data-dir", "photos", "--epochs", epochs, "--recipe", recipe)
    straight, path = train_in_process(run / "straight.ckpt", *arguments), run / "stopped.ckpt"
    with interrupted_in(epochs - 1), pytest.raises(KeyboardInterrupt):
        train_in_process(path, *arguments)
    assert checkpoint.load(path).epoch == epochs - 2
    resumed = train_in_process(path, "-c", path)
    assert same_weights(resumed.last, straight.last)
    assert same_weights(resumed.best, straight.best)
    for row in (*resumed.history, *straight.history):
        del row["seconds"]
    assert resumed.history == straight.history


def test_ctrl_c_says_how_to_go_on(run):
    arguments = ("--data-dir", "photos", "--epochs", 9, "--cache", 1)
    with interrupted_in(1), pytest.raises(KeyboardInterrupt) as stopped:
        train_in_process("b.ckpt", *arguments)
    said = "To go on after the last finished epoch:\n  python train.py -c b.ckpt"
    assert str(stopped.value) == f"{said} --device cpu --cache 1.0 --save-to-bento no"
    assert not (run / "b" / "report.html").exists()


def test_a_finished_run_is_not_repeated_and_can_be_taken_elsewhere_with_its_photos(run):
    before = RUN.read_bytes()
    run_training("--checkpoint", RUN)
    (run / "photos").rename(run / "moved")
    taken = train_in_process("b.ckpt", "-c", RUN, "--data-dir", "moved")
    assert taken.arguments["data_dir"] == "moved"
    assert same_weights(taken.best, checkpoint.load(RUN).best)
    assert RUN.read_bytes() == before
    run_training("-c", RUN, "--data-dir", "moved")  # it is the same one
    assert checkpoint.load(RUN).arguments["data_dir"] == "moved"


def test_a_loss_that_is_not_finite_stops_and_leaves_the_epoch_before(run):
    with pytest.raises(StackError, match=r"epoch 1 isn't finite: the learning rate 1e\+30"):
        train_in_process("b.ckpt", "--data-dir", "photos", "--epochs", 2, "--lr", 1e30)
    assert checkpoint.load(run / "b.ckpt").epoch == 0


@pytest.mark.parametrize("seed", [1234567890, -(10**30)])
def test_any_whole_number_is_a_seed(seed):
    state = train_in_process("b.ckpt", "--data-dir", "photos", "--freeze", f"--seed={seed}")
    assert state.arguments["seed"] == seed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--data-dir none", "sh get_data.sh"),
        ("--data-dir empty", "empty/bees has no photos"),
        ("--data-dir photos --device cuda:99", "no such device"),
        ("--data-dir photos --output a.ckpt", "choose another --output"),
        ("--data-dir none --output /proc/b.ckpt", "can't write /proc/b.ckpt"),
        ("--data-dir photos --lr=-1", "--lr must be more than 0"),
        ("-c a.ckpt --lr 0.5", "--lr is 0.0003 in this run"),
        ("-c none.ckpt", "there is no checkpoint"),
    ],
)
def test_what_cannot_be_trained_is_one_clear_line_and_changes_nothing(run, capsys, arguments, said):
    write_pictures(run / "empty", 2, ("ants",))
    (run / "empty" / "bees").mkdir()
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    with pytest.raises((StackError, SystemExit)) as error:
        run_training(*arguments.split())
    assert said in f"{error.value}{capsys.readouterr().err}"
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


@pytest.mark.parametrize(("answer", "packed"), [("yes", [["a.ckpt"]]), ("no", []), ("ask", [])])
def test_a_run_is_packed_at_the_end_if_that_is_wanted(monkeypatch, answer, packed):
    calls = []
    monkeypatch.setitem(sys.modules, "saveToBento", SimpleNamespace(main=calls.append))
    run_training("-c", RUN, "--save-to-bento", answer)
    assert calls == packed


# --update: photos are added or removed, and the same command is run again


@pytest.fixture
def update(run, capsys):  # noqa: ARG001
    """Run the same command again; return what it printed, and whether it trained."""

    def update():
        before = RUN.stat().st_mtime_ns
        train_in_process(RUN, "--update", "--data-dir", "photos", "--epochs", 1)
        return capsys.readouterr().out, RUN.stat().st_mtime_ns != before

    return update


def test_changed_photos_are_said_and_trained_anew_once(update, run):
    said, trained = update()
    assert not trained
    assert "nothing to do" in said
    write_pictures(run / "photos", 9)
    (run / "photos" / "bees" / "0.png").unlink()
    write_pictures(run / "photos", 3, ("wasps",))
    (run / "photos" / "ants" / "junk.jpg").write_bytes(b"junk")  # can't be read, is not new again
    said, trained = update()
    assert trained
    assert "has changed: 6 new photos, 1 gone, new class wasps. Training again." in said
    assert update()[1] is False


def test_an_update_goes_on_with_an_interrupted_run():
    state = train_in_process(RUN, "--update", "--data-dir", "photos", "--epochs", 2)
    assert [row["epoch"] for row in state.history] == [0, 1, 2]


def test_training_anew_takes_what_was_given_before(run):
    given = ("--data-dir", "photos", "--freeze", "--seed", 3, "--class-weights")
    state = train_in_process("b.ckpt", *given)
    write_pictures(run / "photos", 9)
    anew = train_in_process("b.ckpt", "--update", "--lr", 0.002)
    assert anew.arguments == {**state.arguments, "lr": 0.002}
    assert anew.photos != state.photos


def test_an_old_report_is_not_taken_for_that_of_a_run_that_was_stopped(update, run):
    write_pictures(run / "photos", 9)
    with (
        patch.object(label_check, "find", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        update()
    assert not (run / "a" / "report.html").exists()
    assert "nothing to do" not in update()[0]
    assert (run / "a" / "report.html").exists()


def test_ctrl_c_before_the_first_new_epoch_names_no_way_to_go_on(update, run):
    write_pictures(run / "photos", 9)
    stop = patch.object(dataset, "load_photos", side_effect=KeyboardInterrupt)
    with stop, pytest.raises(KeyboardInterrupt, match=r"^$"):
        update()


# --evaluate


def evaluated(capsys, *arguments):
    """Return what is printed when a.ckpt is evaluated."""
    capsys.readouterr()
    run_training("--evaluate", "-c", RUN, "--device", "cpu", *arguments)
    return capsys.readouterr()


def test_evaluate_prints_the_metrics_and_which_photo_is_gone(run, capsys):
    state, names = checkpoint.load(RUN), checkpoint.load(RUN).photos["val"]
    assert state.best_accuracy == 1
    total, (said, _) = len(names), evaluated(capsys)
    assert f"accuracy 1.0000 on {total} validation photos ({total} of {total} photos, 95 %" in said
    for name in state.classes:
        count = sum(name in photo for photo in names)
        share = rf"{count} of {count} \(0\.\d+ to 1\.000\)"
        row = rf"{name}  precision {share}  recall {share}  f1-score –  \({count} photos?\)"
        assert re.search(row, said)
    (run / "photos" / names[0]).unlink()
    said, warned = evaluated(capsys)
    assert f"on {total - 1} validation photo" in said
    assert "warning: skipped" in warned
    assert not list((run / "a").glob("evaluated-*"))


def test_another_folder_is_evaluated_without_the_photos_of_the_training(run, capsys):
    shutil.rmtree(run / "photos")
    write_pictures(run / "test", 4, ("bees",))
    (run / "test" / "bees" / "notes.txt").touch()
    assert "accuracy 1.0000 on 4 photos in test" in evaluated(capsys, "--data-dir", "test")[0]
    page = (run / "a" / "evaluated-test" / "report.html").read_text()
    assert "notes.txt: not named like a photo" in page
