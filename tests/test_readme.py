"""What the README, the help texts and the Kubernetes manifest say is true."""

import functools
import re
import shlex

import pytest
from helpers import PROJECT, python, run

README = (PROJECT / "README.md").read_text()
DOCUMENTS = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").glob("*.md"))]
LINKS = [
    document.parent / target
    for document in DOCUMENTS
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", document.read_text())
]
COMMANDS = [
    line.strip()
    for document in DOCUMENTS
    for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
TEXT = "".join(document.read_text() for document in DOCUMENTS)
COMMANDS += re.findall(r"`(python [^`]+)`", TEXT)  # those in tables and sentences


@functools.cache
def help_text(script: str) -> str:
    return python(script, "--help").stdout


def words(text: str) -> str:
    """The text with the line breaks and option syntax that differ between versions of Python."""
    text = re.sub(r"(-\w) [A-Z_]+, (--)", r"\1, \2", text)
    return " ".join(text.split())


@pytest.mark.parametrize("script", ["train.py", "saveToBento.py", "predict.py", "publish.py"])
def test_help_text_in_the_documentation_is_the_scripts(script):
    assert words(help_text(script)) in words((PROJECT / "docs" / "command-line.md").read_text())


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python ")])
def test_python_command_has_options_that_exist(command):
    script, *arguments = shlex.split(command, comments=True)[1:]
    if script == "-m":
        return
    for option in (a.partition("=")[0] for a in arguments if a.startswith("-")):
        assert re.search(rf"{option}\b", help_text(script)), f"{script} has no {option}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match(r"(sudo .*)?make ", c)])
def test_make_recipe_exists(command):
    recipe = re.search(r"make (\w+)", command)[1]
    assert re.search(rf"^{recipe}:", (PROJECT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.search(r"\bsh \w", c)])
def test_shell_script_exists(command):
    assert (PROJECT / re.search(r"\bsh ([\w./]+)", command)[1]).is_file()


@pytest.mark.parametrize("target", LINKS)
def test_linked_file_exists(target):
    assert target.exists()


def test_every_setting_is_documented():
    settings = (PROJECT / "simplestack" / "serving" / "settings.py").read_text()
    for name in re.findall(r"^    (\w+): [\w\[\], .]+ = ", settings, re.MULTILINE):
        assert f"`{name.upper()}`" in TEXT


def test_make_help_lists_every_recipe():
    phony = re.search(r"^\.PHONY: help (.*)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)[1]
    text = run("make", "--no-print-directory", "help").stdout
    assert sorted(re.findall(r"^  make (\w+)", text, re.MULTILINE)) == sorted(phony.split())
    for part in ("Use it:", "Work on it:", "DATA_DIR=", "PORT="):
        assert part in text


def test_the_kubernetes_manifest_fits_its_schema():
    result = run("kubernetes-validate", "--strict", "kubernetes.yaml")
    assert result.returncode == 0, result.stderr
