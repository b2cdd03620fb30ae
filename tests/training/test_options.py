"""The options as a command line: their meaning, and which make no sense."""

import shlex
from pathlib import Path

import pytest

from simplestack.training.options import FIXED, command, merge, parse_arguments


def merged(words="", recorded=()):
    return merge(parse_arguments(shlex.split(words)), dict(recorded))


@pytest.mark.parametrize(
    ("given", "shortest"),
    [
        ("", ""),
        ("--seed 0 --epochs 4 --recipe lp-ft --device cpu", ""),
        ("--freeze", " --epochs 0"),
        ("--data-dir 'my photos' --seed 3", " --data-dir 'my photos' --seed 3"),
        ("--from-scratch", " --from-scratch"),
        ("--recipe tutorial --epochs 25 --class-weights", " --recipe tutorial --class-weights"),
        ("--recipe tutorial --epochs 4", " --recipe tutorial --epochs 4"),
        ("--lr 0.001 --batch-size 4", " --batch-size 4 --lr 0.001"),
    ],
)
def test_the_command_that_repeats_a_run_leaves_out_the_defaults(given, shortest):
    recorded = merged(given).recorded()
    words = command(recorded).removeprefix("python train.py")
    assert sorted(shlex.split(words)) == sorted(shlex.split(shortest))
    assert merged(words).recorded() == recorded


@pytest.mark.parametrize(
    ("given", "said"),
    [
        *((f"--lr {value}", "--lr must be more than 0") for value in ("nan", "inf", "0")),
        ("--batch-size 0", "--batch-size must be more than 0"),
        ("--cache -1", "--cache must be 0 or more"),
        ("--epochs -1", "--epochs must be 0 or more"),
        ("--epochs 0 --from-scratch", "--epochs must be more than 0"),
        ("--epochs many", "argument --epochs: invalid int value: 'many'"),
        ("--seed x", "argument --seed: invalid int value: 'x'"),
        ("--recipe tutorial --freeze", "--epochs must be more than 0"),
        ("--recipe lp-ft --from-scratch", "leave out --from-scratch"),
        ("--evaluate", "--evaluate needs the checkpoint"),
        ("--update", "--update needs --output"),
        ("--update --output a.ckpt -c a.ckpt", "--update needs --output"),
    ],
)
def test_options_that_make_no_sense_are_one_clear_line(given, said, capsys):
    with pytest.raises(SystemExit):
        merged(given)
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "given",
    [
        *("--recipe tutorial", "--batch-size 4", "--lr 0.5", "--seed 1", "--from-scratch"),
        "--class-weights",
    ],
)
def test_options_that_decide_the_result_cannot_be_changed_when_resuming(given, capsys):
    recorded, flag = merged().recorded(), given.split()[0]
    with pytest.raises(SystemExit):
        merged(given, recorded)
    value = recorded[flag[2:].replace("-", "_")]
    assert f"{flag} is {value} in this run and can't be changed" in capsys.readouterr().err


def test_epochs_and_folder_may_be_changed_when_resuming():
    recorded = merged().recorded()
    assert set(recorded) - set(FIXED) == {"data_dir", "epochs"}
    options = merged("--epochs 9 --data-dir moved", recorded)
    assert (options.epochs, options.data_dir) == (9, Path("moved"))


def test_from_scratch_takes_the_tutorials_recipe():
    assert merged("--from-scratch").recipe == "tutorial"
