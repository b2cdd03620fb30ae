"""The options as a command line."""

import shlex

import pytest

from simplestack.training.options import command, merge, parse_arguments


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
