"""publish.py: the page without a server, and bench/page.py, which checks its answers."""

import base64
import contextlib
import io
import json
import re
import runpy
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml
from helpers import code_block

import publish
from bench import page as bench_page
from simplestack.packing import onnx_file
from simplestack.serving import images, site
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel, answer

FILES = """.nojekyll README.md browser.js classifier.js examples examples/1.jpg examples/2.jpg
    examples/3.jpg index.html labels.txt model.json model.onnx onnxruntime.js onnxruntime.wasm
    rules.json"""


@pytest.fixture(scope="module", autouse=True)
def runtime(tmp_path_factory):
    """A small file in the place of ONNX Runtime for browsers."""
    folder = tmp_path_factory.mktemp("runtime")
    package = folder / publish.RUNTIME.name
    with tarfile.open(package, "w:gz") as files:
        for name, part in publish.PARTS.items():
            (folder / name).write_text(name)
            files.add(folder / name, part)
    sha512 = site.integrity(package.read_bytes(), "sha512").removeprefix("sha512-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "RUNTIME", package)
        patch.setattr(publish, "SHA512", sha512)
        yield package


def run_publish(folder, *arguments):
    """Run publish.py in a folder; return what it prints."""
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        publish.main([str(word) for word in arguments])
    return printed.getvalue()


@pytest.fixture(scope="module")
def public(packed, model_file, tmp_path_factory):
    """The folder that it writes, twice: the second time over the first."""
    folder = tmp_path_factory.mktemp("anywhere")
    run_publish(folder, model_file)
    (folder / "public/examples/old.jpg").touch()  # which is no longer shown
    (folder / "saved_models").symlink_to(packed)
    assert "hf upload USER/SPACE public . --type space" in run_publish(folder)
    return folder / "public"


def test_folder_has_what_a_static_host_needs(public, model_file):
    assert {str(path.relative_to(public)) for path in public.rglob("*")} == {*FILES.split()}
    assert public.stat().st_mode & 0o777 == 0o755
    assert (public / "model.onnx").read_bytes() == model_file.read_bytes()
    assert (public / "onnxruntime.wasm").read_text() == "onnxruntime.wasm"
    assert (public / "labels.txt").read_text() == "ants\nbees\n"
    metadata = OnnxModel(public / "model.onnx").metadata
    assert json.loads((public / "model.json").read_text()) == site.model_json(metadata)
    photos = [(public / f"examples/{i}.jpg").read_bytes() for i in (1, 2, 3)]
    assert [base64.b64encode(photo).decode() for photo in photos] == metadata["examples"]
    header = yaml.safe_load((public / "README.md").read_text().split("---")[1])
    assert (header["sdk"], header["title"]) == ("static", "Ants or bees?")
    for name in ("index.html", "browser.js", "classifier.js", "rules.json", "model.json"):
        assert not re.findall(r"https?://(?!www.w3)", (public / name).read_text())
    rules = json.loads((public / "rules.json").read_text())
    assert (rules["resize"], rules["crop"]) == (images.RESIZE, images.CROP)
    for name in ("model.onnx", "onnxruntime.wasm"):
        assert rules["integrity"].pop(name) == site.integrity((public / name).read_bytes())
    assert not rules["integrity"]


def test_python_of_the_documentation_answers_as_the_service(
    public, photo, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(code_block("python", "onnxruntime"))
    file = shutil.copy(public / "model.onnx", tmp_path)
    onnx_file.write_metadata(file, {**OnnxModel(file).metadata, "temperature": 3.0})
    model = OnnxModel(file)
    for path in sorted(photo.parent.parent.glob("*/*.jpg")):
        shutil.copy(path, "image.jpg")
        runpy.run_path("mine.py")
        probabilities = json.loads(capsys.readouterr().out)
        expected = answer(model.metadata, model(images.read(path.read_bytes())[None]))
        assert probabilities == pytest.approx(expected["probabilities"], abs=1e-5)


@pytest.mark.parametrize("name", ["index.html", "examples/mine.jpg"])
def test_what_is_in_the_way_is_not_overwritten(model_file, tmp_path, name):
    file = tmp_path / "public" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StackError, match="public holds something else"):
        run_publish(tmp_path, model_file)
    assert file.read_text() == "mine"
    assert sorted(tmp_path.rglob("*")) == before


def test_what_npm_fetches_is_kept_or_the_error_says_where_to_put_it(
    runtime, model_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(publish, "RUNTIME", tmp_path / runtime.name)
    npm, path = tmp_path / "npm", f"{tmp_path}:/usr/bin:/bin"
    npm.write_text(f'#!/bin/sh\n[ "$*" = "pack onnxruntime-web@1.30.0" ] && cp {runtime} .\n')
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StackError) as refused:
        run_publish(tmp_path, model_file)
    remedy = f"install Node.js, or run it on another machine and copy its file into {tmp_path}"
    assert re.fullmatch(f"npm pack onnxruntime-web@1.30.0 fails (.*): {remedy}", str(refused.value))
    assert not (tmp_path / "public").exists()
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", path)
    assert "fetching ONNX Runtime for browsers (33 MB) …" in run_publish(tmp_path, model_file)
    npm.unlink()
    assert "fetching" not in run_publish(tmp_path, model_file)


def test_what_is_wrong_is_one_clear_line(model_file, tmp_path, monkeypatch):
    damaged = tmp_path / publish.RUNTIME.name
    damaged.write_bytes(b"something else")
    monkeypatch.setattr(publish, "RUNTIME", damaged)
    for arguments, error in (
        ([], "saved_models/ has no .onnx file"),
        (["none.onnx"], "the packed model none.onnx is missing or damaged"),
        ([model_file], "isn't the published file: delete it"),
    ):
        with pytest.raises(StackError, match=error):
            run_publish(tmp_path, *arguments)
        assert not (tmp_path / "public").exists()


ANSWER = {"label": "ants", "probabilities": {"ants": 0.6, "bees": 0.4}, "similarity": 0.5}
ANSWER |= {"unlike": False, "ms": 9.0}
MOVED = {**ANSWER, "probabilities": {"ants": 0.63, "bees": 0.37}}
ERROR = {"error": "damaged"}
SAME = "^page and service: the same label for"
DIFFERENT = "^error: page and service differ too much: a.jpg$"
NONE = "^error: there is no photo that both the page and the service can answer$"


@pytest.mark.parametrize(
    ("first", "name", "page", "service", "said"),
    [
        (ANSWER, "a.jpg", ANSWER, {**ANSWER, "label": "bees"}, DIFFERENT),
        (ANSWER, "a.jpg", ERROR, ANSWER, DIFFERENT),
        (ANSWER, "a.jpg", ANSWER, MOVED, DIFFERENT),
        (ANSWER, "a.png", ANSWER, MOVED, rf"{SAME} 2 of 2 .* read \(of 2\), and unlike for 2;"),
        (ANSWER, "a.jpg", ERROR, ERROR, rf"{SAME} 1 of 1 .* read \(of 2\), and unlike for 1;"),
        (ERROR, "a.jpg", ERROR, ERROR, NONE),
    ],
)
def test_check_counts_what_both_can_read_and_fails_where_they_differ(
    capsys, *, first, name, page, service, said
):
    try:
        bench_page.report([(Path("b.jpg"), first, first), (Path(name), page, service)])
        printed = capsys.readouterr().out
    except SystemExit as error:
        printed = str(error)
    assert re.search(said, printed)
