"""What the README, the help texts and the Kubernetes manifest say is true."""

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

README = (PROJECT / "README.md").read_text()
MAKEFILE = (PROJECT / "Makefile").read_text()
DOCUMENTS = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").glob("*.md"))]
LINKS = {
    f"{document.relative_to(PROJECT)}: {target}": document.parent / target
    for document in DOCUMENTS
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", document.read_text())
}
TEXT = "".join(document.read_text() for document in DOCUMENTS)
BLOCKS = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.partition("#")[0].strip()
]
SHELL = "".join(path.read_text() for path in sorted(PROJECT.glob("*.sh")))
DOCSTRINGS = "".join(
    path.read_text() for path in (*PROJECT.glob("*.py"), *PROJECT.glob("bench/*.py"))
)
COMMANDS = {
    *re.findall(r"\b(python [^|>)#\n]+)", "\n".join(BLOCKS)),
    *re.findall(r"`(python [^`>|]+)", TEXT),  # those in tables and sentences
    *re.findall(r"^\$ (python [^|>#\n]+)", TEXT, re.MULTILINE),
    *re.findall(r"^    (python [^|>#\n]+)", DOCSTRINGS, re.MULTILINE),
    *re.findall(r"^ *[^#\n]*?\b(python3? -m simplestack [\w-]+)", SHELL, re.MULTILINE),
}
WORDS = {
    command: shlex.split(command)[1:] for command in sorted({found.strip() for found in COMMANDS})
}
SUBCOMMANDS = set(
    re.findall(r"^python -m simplestack ([\w-]+)", simplestack.__main__.__doc__, re.M)
)


class Made(Exception):  # noqa: N818  (no error)
    """A parser, as soon as it would parse."""


@functools.cache
def parser(module: str) -> argparse.ArgumentParser:
    """Return the parser of a script of ours, or of a module of bench."""
    script = importlib.import_module(module)

    def stop(made: argparse.ArgumentParser, *_: object) -> None:
        raise Made(made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{module}.py"])
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Made) as made:
            script.parse_arguments() if module in {"train", "predict"} else script.main()
    return made.value.args[0]


def words(text: str) -> str:
    """The text with the line breaks and option syntax that differ between versions of Python."""
    text = re.sub(r"(-\w) [A-Z_]+, (--)", r"\1, \2", text)
    return " ".join(text.split())


@pytest.mark.parametrize("script", ["train", "saveToBento", "predict", "publish"])
def test_help_text_in_the_documentation_is_the_scripts(script, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    help_text = f"## {script}.py\n\n```text\n{parser(script).format_help()}```"
    assert words(help_text) in words((PROJECT / "docs" / "command-line.md").read_text())


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_commands_of_every_kind_are_found():
    for command in ("python train.py", "python -m bench.train --ablate", "python -m http.server"):
        assert [found for found in WORDS if found.startswith(command)]
    subcommands = re.findall(r"-m simplestack ([\w-]+)", "\n".join(WORDS))
    assert set(subcommands) == SUBCOMMANDS  # each has its user


@pytest.mark.parametrize("command", WORDS)
def test_python_command_exists_with_its_options(command):
    script, *arguments = WORDS[command]
    if script != "-m":
        assert (PROJECT / script).is_file()
        module = script.removesuffix(".py")
    else:
        module, *arguments = arguments
        assert importlib.util.find_spec(module)
        if module == "simplestack":
            assert arguments[0] in SUBCOMMANDS
        if module.split(".")[0] != "bench":
            return
    options = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    assert set(options) <= set(parser(module)._option_string_actions)


@pytest.mark.parametrize("command", [c for c in BLOCKS if re.match(r"(sudo .*)?make ", c)])
def test_make_recipe_exists(command):
    recipe = re.search(r"make ([\w-]+)", command)[1]
    assert re.search(rf"^{recipe}:", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize("command", [c for c in BLOCKS if re.search(r"\bsh \w", c)])
def test_shell_script_exists(command):
    assert (PROJECT / re.search(r"\bsh ([\w./]+)", command)[1]).is_file()


@pytest.mark.parametrize("link", LINKS)
def test_linked_file_exists(link):
    assert LINKS[link].exists()


def test_make_help_lists_every_recipe():
    phony = re.search(r"^\.PHONY: help (.*)$", MAKEFILE, re.MULTILINE)[1]
    text = run("make", "--no-print-directory", "help").stdout
    assert sorted(re.findall(r"^  make ([\w-]+)", text, re.MULTILINE)) == sorted(phony.split())
    for part in ("Use it:", "Work on it:", "DATA_DIR=", "PORT="):
        assert part in text


def test_the_kubernetes_manifest_fits_its_schema():
    result = run("kubernetes-validate", "--strict", "kubernetes.yaml")
    assert result.returncode == 0, result.stderr


def test_what_torch_pins_itself_is_not_pinned():
    pins = (PROJECT / "requirements.txt").read_text().splitlines()
    assert not [pin for pin in pins if pin.startswith(("cuda", "nvidia", "triton"))]
