"""What the documents, `make help` and the Kubernetes manifest say is true."""

import argparse
import functools
import importlib
import importlib.util
import re
import shlex
import sys

import pytest
from helpers import PROJECT, run

import simplestack.__main__

MAKEFILE = (PROJECT / "Makefile").read_text()
DOCUMENTS = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").glob("*.md"))]
TEXT = "".join(document.read_text() for document in DOCUMENTS)
BLOCKS = "\n".join(
    line.partition(" #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if not line.startswith("#")
)
SHELL = "".join(path.read_text() for path in PROJECT.glob("*.sh"))
DOCSTRINGS = "".join(p.read_text() for p in (*PROJECT.glob("*.py"), *PROJECT.glob("bench/*.py")))
COMMANDS = {
    *re.findall(r"\b(python [^|>)#\n]+)", BLOCKS),
    *re.findall(r"`(python [^`>|]+)", TEXT),  # those in tables and sentences
    *re.findall(r"^\$ (python [^|>#\n]+)", TEXT, re.MULTILINE),
    *re.findall(r"^    (python [^|>#\n]+)", DOCSTRINGS, re.MULTILINE),
    *re.findall(r"^ *[^#\n]*?\b(python3? -m simplestack [\w-]+)", SHELL, re.MULTILINE),
}
ABOUT = simplestack.__main__.__doc__
SUBCOMMANDS = set(re.findall(r"^python -m simplestack ([\w-]+)", ABOUT, re.MULTILINE))


class Made(Exception):  # noqa: N818  (no error)
    pass


@functools.cache
def parser(module):
    script = importlib.import_module(module)

    def stop(made, *_):
        raise Made(made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{module}.py"])
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Made) as made:
            script.parse_arguments() if module in {"train", "predict"} else script.main()
    return made.value.args[0]


def test_python_commands_exist_with_their_options_and_each_subcommand_has_a_user():
    assert {"python train.py", "python -m bench.train --ablate"} <= {c.strip() for c in COMMANDS}
    assert set(re.findall(r"-m simplestack ([\w-]+)", "\n".join(COMMANDS))) == SUBCOMMANDS
    for command in COMMANDS:
        _, script, *arguments = shlex.split(command)
        module = arguments.pop(0) if script == "-m" else script.removesuffix(".py")
        assert (PROJECT / script).is_file() or (script == "-m" and importlib.util.find_spec(module))
        if script != "-m" or module.startswith("bench"):
            options = {word.partition("=")[0] for word in arguments if word.startswith("-")}
            assert options <= set(parser(module)._option_string_actions), command


def test_recipes_shell_scripts_and_linked_files_exist():
    made = set(re.findall(r"^(?:sudo .*)?make ([\w-]+)", BLOCKS, re.MULTILINE))
    assert {"run", "test"} <= made <= set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
    scripts = set(re.findall(r"\bsh (\w[\w./]*)", BLOCKS))
    assert "get_data.sh" in scripts
    assert not [script for script in scripts if not (PROJECT / script).is_file()]
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists()


def test_make_help_lists_every_recipe():
    phony = re.search(r"^\.PHONY: help (.*)$", MAKEFILE, re.MULTILINE)[1]
    text = run("make", "--no-print-directory", "help").stdout
    assert sorted(re.findall(r"^  make ([\w-]+)", text, re.MULTILINE)) == sorted(phony.split())


def test_the_manifest_fits_its_schema_the_readme_is_short_and_torch_pins_cuda():
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 200
    assert not re.search("^(cuda|nvidia|triton)", (PROJECT / "requirements.txt").read_text(), re.M)
    result = run("kubernetes-validate", "--strict", "kubernetes.yaml")
    assert result.returncode == 0, result.stderr
