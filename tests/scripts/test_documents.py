"""The documents, `make help` and the Kubernetes manifest are true."""

import functools
import importlib
import importlib.util
import io
import re
import shlex
import sys
from contextlib import redirect_stdout
from unittest.mock import patch

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
}
SUBCOMMAND = re.compile(r"python3? -m simplestack ([\w-]+)")


@functools.cache
def options(module):
    """Return the options in the help text of a script or of a module."""
    script, text = importlib.import_module(module), io.StringIO()
    parse = script.parse_arguments if module == "train" else script.main
    argv = patch.object(sys, "argv", [module, "--help"])
    with argv, redirect_stdout(text), pytest.raises(SystemExit):
        parse()
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text.getvalue()))


def test_python_commands_exist_with_their_options_and_each_subcommand_has_a_user():
    assert {"python train.py", "python -m bench.train --ablate"} <= {c.strip() for c in COMMANDS}
    used, documented = SHELL + TEXT, simplestack.__main__.__doc__
    assert set(SUBCOMMAND.findall(used)) == set(SUBCOMMAND.findall(documented))
    for command in COMMANDS:
        _, script, *arguments = shlex.split(command)
        module = arguments.pop(0) if script == "-m" else script.removesuffix(".py")
        assert (PROJECT / script).is_file() or (script == "-m" and importlib.util.find_spec(module))
        if script != "-m" or module.startswith("bench"):
            given = {word.partition("=")[0] for word in arguments if word.startswith("-")}
            assert given <= options(module), command


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


def test_the_workflow_names_its_actions_by_commit_and_their_version_in_a_comment():
    lines = (PROJECT / ".github/workflows/test.yml").read_text().splitlines()
    actions = [line for line in lines if "uses:" in line]
    assert actions
    assert all(re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", action) for action in actions)


def test_the_manifest_fits_its_schema_the_readme_is_short_and_torch_pins_cuda():
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 200
    assert not re.search("^(cuda|nvidia|triton)", (PROJECT / "requirements.txt").read_text(), re.M)
    result = run("kubernetes-validate", "--strict", "kubernetes.yaml")
    assert result.returncode == 0, result.stderr
