"""publish.py: the page without a server, and bench/page.py, which checks its answers."""

import base64
import contextlib
import hashlib
import io
import json
import re
import runpy
import shutil
import tarfile
from pathlib import Path

import onnxruntime
import pytest
import yaml
from helpers import code_block
from PIL import Image

import publish
from bench import page as bench_page
from simplestack.packing import onnx_file
from simplestack.serving import images, site
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel, answer

VISITED = """browser.js classifier.js examples/1.jpg examples/2.jpg examples/3.jpg icon-192.png
    icon-512.png index.html labels.txt manifest.json model.json model.onnx onnxruntime.LICENSE.txt
    onnxruntime.js onnxruntime.wasm rules.json"""
FILES = f".nojekyll README.md _headers examples sw.js {VISITED}"


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
    (folder / "public/old.js").touch()  # of an older page
    (folder / "saved_models").symlink_to(packed)
    assert "hf upload USER/SPACE public . --type space" in run_publish(folder)
    return folder / "public"


def test_folder_has_what_a_static_host_needs(public, model_file):
    paths = {str(path.relative_to(public)) for path in public.rglob("*")}
    assert paths == {*FILES.split(), "old.js"}
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


def hashed(data):
    return f"sha256-{base64.b64encode(hashlib.sha256(data).digest()).decode()}"


def test_policy_allows_its_scripts_a_manifest_a_service_worker_and_no_more(public):
    page = (public / "index.html").read_text()
    policy = re.search('Content-Security-Policy" content="(.*)">', page)[1]
    scripts = re.findall("(?s)<script>(.+?)</script>", page)  # the page's, and the corrections'
    hashes = " ".join(f"'{hashed(script.encode())}'" for script in scripts)
    (style,) = re.findall("(?s)<style>(.+?)</style>", page)
    assert policy.split("; ") == [
        "default-src 'none'",
        f"script-src {hashes} 'self' 'wasm-unsafe-eval'",
        f"style-src '{hashed(style.encode())}'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "manifest-src 'self'",
        "worker-src 'self'",
    ]


def test_version_is_the_hash_of_all_files_that_a_visit_needs(public, model_file, tmp_path):
    def version(public):
        script = (public / "sw.js").read_text()
        return json.loads(re.search(r"const \[VERSION, FILES\] = (.*);", script)[1])

    name, files = version(public)
    assert files.pop("./") == files["index.html"]
    assert files == {path: hashed((public / path).read_bytes()) for path in VISITED.split()}
    run_publish(tmp_path, model_file)
    assert version(tmp_path / "public")[0] == name
    file = shutil.copy(model_file, tmp_path)
    onnx_file.write_metadata(file, {**OnnxModel(file).metadata, "temperature": 3.0})
    run_publish(tmp_path, file)
    assert version(tmp_path / "public")[0] != name


def test_manifest_icons_headers_and_the_licence_are_there(public):
    page = (public / "index.html").read_text()
    manifest = json.loads((public / "manifest.json").read_text())
    assert manifest["name"] == "Ants or bees?"
    assert '<link rel="manifest" href="manifest.json">' in page
    assert '<link rel="apple-touch-icon" href="icon-192.png">' in page
    for icon in manifest["icons"]:
        with Image.open(public / icon["src"]) as image:
            assert "{}x{}".format(*image.size) == icon["sizes"]
    headers = yaml.safe_load((public / "README.md").read_text().split("---")[1])["custom_headers"]
    assert headers.pop("cross-origin-resource-policy") == "cross-origin"
    written = re.findall(r"^  (\S+): (\S+)$", (public / "_headers").read_text(), re.MULTILINE)
    assert {name.lower(): value for name, value in written} == headers
    licence = Path(onnxruntime.__file__).with_name("LICENSE")
    assert (public / "onnxruntime.LICENSE.txt").read_bytes() == licence.read_bytes()


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
SAME = r"^page \(2 threads\) and service: the same label for"
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
        bench_page.report(2, [(Path("b.jpg"), first, first), (Path(name), page, service)])
        printed = capsys.readouterr().out
    except SystemExit as error:
        printed = str(error)
    assert re.search(said, printed)
