"""The options as a command line: what they mean, and which make no sense."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from simplestack.training.options import FIXED, command, merge, parse_arguments


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
def test_the_command_that_repeats_a_run_says_what_is_not_the_default(
    given: str, shortest: str
) -> None:
    recorded = merge(parse_arguments(shlex.split(given)), {}).recorded()
    repeat = command(recorded)
    words = repeat.removeprefix("python train.py")
    assert sorted(shlex.split(words)) == sorted(shlex.split(shortest))
    assert merge(parse_arguments(shlex.split(words)), {}).recorded() == recorded


def test_the_command_to_go_on_has_what_is_not_recorded() -> None:
    given = parse_arguments(["--cache", "0.5", "--device", "cpu", "--epochs", "3"])
    command = merge(given, {}).resume_command()
    assert command.endswith(".ckpt --device cpu --cache 0.5")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--lr nan", "--lr must be more than 0"),
        ("--lr inf", "--lr must be more than 0"),
        ("--lr 0", "--lr must be more than 0"),
        ("--batch-size 0", "--batch-size must be more than 0"),
        ("--batch-size -1", "--batch-size must be more than 0"),
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
def test_options_that_make_no_sense_are_one_clear_line(
    given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        merge(parse_arguments(given.split()), {})
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("recipe", "tutorial"), ("batch_size", 4), ("lr", 0.5), ("seed", 1)),
        *(("from_scratch", True), ("class_weights", True)),
    ],
)
def test_what_decides_the_result_cannot_be_changed_when_resuming(
    name: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = merge(parse_arguments([]), {}).recorded()
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(SystemExit):
        merge(parse_arguments([flag] if value is True else [flag, str(value)]), recorded)
    assert f"{flag} is {recorded[name]} in this run and can't be changed" in capsys.readouterr().err


def test_what_does_not_decide_the_result_may_be_changed_when_resuming() -> None:
    recorded = merge(parse_arguments([]), {}).recorded()
    assert set(recorded) - set(FIXED) == {"data_dir", "epochs"}
    options = merge(parse_arguments(["--epochs", "9", "--data-dir", "moved"]), recorded)
    assert (options.epochs, options.data_dir) == (9, Path("moved"))


def test_from_scratch_takes_the_tutorials_recipe() -> None:
    assert merge(parse_arguments(["--from-scratch"]), {}).recipe == "tutorial"
