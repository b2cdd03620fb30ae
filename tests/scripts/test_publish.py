"""publish.py: the page without a server, and the check of its answers."""

import contextlib
import io
import json
import re
import runpy
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import yaml
from helpers import code_block
from serving.conftest import in_process
from starlette.testclient import TestClient

import publish
from simplestack.packing import page_check
from simplestack.serving import images, kinds, site
from simplestack.serving.errors import StackError

pytestmark = [
    pytest.mark.usefixtures("bento"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_fields'"),  # by BentoML
]


@pytest.fixture(scope="module", autouse=True)
def runtime(tmp_path_factory) -> Iterator[Path]:
    """A small file in the place of ONNX Runtime for browsers."""
    package = tmp_path_factory.mktemp("runtime") / publish.RUNTIME.name
    with tarfile.open(package, "w:gz") as files:
        for name, part in publish.PARTS.items():
            entry = tarfile.TarInfo(part)
            entry.size = len(name)
            files.addfile(entry, io.BytesIO(name.encode()))
    sha512 = site.integrity(package.read_bytes(), "sha512").removeprefix("sha512-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "RUNTIME", package)
        patch.setattr(publish, "SHA512", sha512)
        yield package


def run_publish(folder: Path, *arguments: object) -> str:
    """Run publish.py in a folder; return what it prints."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["publish.py", *map(str, arguments)])
        publish.main()
    return said.getvalue()


@pytest.fixture(scope="module")
def public(bento, tmp_path_factory) -> Path:
    """The folder that it writes, twice: the second time over the first."""
    folder = tmp_path_factory.mktemp("anywhere")
    run_publish(folder)
    (folder / "public/examples/old.jpg").touch()
    said = run_publish(folder, f"{bento.parent.name}:latest")
    assert "hf upload USER/SPACE public . --type space" in said
    return folder / "public"


def test_folder_has_what_a_static_host_needs(public, bento):
    assert sorted(path.name for path in public.iterdir()) == [
        ".nojekyll",
        "README.md",
        "browser.js",
        "classifier.js",
        "examples",
        "index.html",
        "labels.txt",
        "model.json",
        "model.onnx",
        "onnxruntime.js",
        "onnxruntime.wasm",
        "rules.json",
    ]
    assert (public / "labels.txt").read_text() == "ants\nbees\n"
    assert public.stat().st_mode & 0o777 == 0o755
    packed = next(bento.glob("models/*/*/model.onnx"))
    assert (public / "model.onnx").read_bytes() == packed.read_bytes()
    assert (public / "onnxruntime.wasm").read_text() == "onnxruntime.wasm"
    assert json.loads((public / "model.json").read_text())["classes"] == ["ants", "bees"]


def test_rules_are_the_services(public):
    rules = json.loads((public / "rules.json").read_text())
    assert (rules["resize"], rules["crop"]) == (images.RESIZE, images.CROP)
    assert len(rules["others"]) == len(kinds.OTHER_FILES)
    assert rules["integrity"] == {
        name: site.integrity((public / name).read_bytes())
        for name in ("model.onnx", "onnxruntime.wasm")
    }


def test_readme_has_the_header_of_a_static_space(public):
    header = yaml.safe_load((public / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "static"
    assert header["title"] == "Ants or bees?"


def test_folder_names_no_other_host(public):
    for name in ("index.html", "browser.js", "classifier.js", "rules.json", "model.json"):
        assert not re.findall(
            r"https?://", (public / name).read_text().replace("http://www.w3", "")
        )


def test_photos_that_are_no_longer_shown_are_removed(public):
    assert sorted(path.name for path in (public / "examples").iterdir()) == [
        "1.jpg",
        "2.jpg",
        "3.jpg",
    ]


def test_model_file_says_what_it_needs(public):
    model = onnx.load(public / "model.onnx")
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert said["labels"] == ["ants", "bees"]
    assert (said["preprocessing"]["resize"], said["preprocessing"]["crop"]) == (256, 224)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-[0-9a-f]{12}", said["version"])
    assert "reason" in said["unlike"]


@pytest.fixture
def inside(tmp_path, monkeypatch) -> None:
    """Be in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def service(bento) -> Iterator[TestClient]:
    with in_process(bento) as client:
        yield client


@pytest.mark.usefixtures("inside")
def test_python_of_the_documentation_answers_as_the_service(public, service, pictures, capsys):
    Path("mine.py").write_text(code_block("python", "onnxruntime"))
    Path("model.onnx").symlink_to(public / "model.onnx")
    for photo in sorted(pictures.glob("val/*/*.jpg")):
        shutil.copy(photo, "image.jpg")
        runpy.run_path("mine.py")
        said = json.loads(capsys.readouterr().out)
        expected = service.post("/predict", content=photo.read_bytes()).json()["probabilities"]
        capsys.readouterr()  # the service's log
        assert said == pytest.approx(expected, abs=1e-5)


# What can't be done


@pytest.mark.parametrize("name", ["index.html", "examples/mine.jpg"])
def test_what_is_in_the_way_is_not_overwritten(tmp_path, name):
    file = tmp_path / "public" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StackError, match="public holds something else"):
        run_publish(tmp_path)
    assert file.read_text() == "mine"
    assert sorted(tmp_path.rglob("*")) == before


def test_without_npm_the_error_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "RUNTIME", tmp_path / publish.RUNTIME.name)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StackError) as refused:
        run_publish(tmp_path)
    line = str(refused.value)
    assert "npm pack onnxruntime-web@1.30.0 fails" in line
    assert "install Node.js, or put what it writes on another machine into" in line
    assert line.endswith(str(tmp_path))
    assert not (tmp_path / "public").exists()


def test_what_npm_fetches_is_kept(runtime, tmp_path, monkeypatch):
    """Its command is replaced by one that has the file."""
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\n[ "$*" = "pack onnxruntime-web@1.30.0" ] && cp {runtime} .\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(publish, "RUNTIME", tmp_path / runtime.name)
    assert "fetching ONNX Runtime for browsers (33 MB) …" in run_publish(tmp_path)
    npm.unlink()
    assert "fetching" not in run_publish(tmp_path)


def test_what_is_wrong_is_one_clear_line(tmp_path, monkeypatch):
    damaged = tmp_path / publish.RUNTIME.name
    damaged.write_bytes(b"something else")
    for arguments, error in (
        (["nothing:latest"], "nothing called nothing"),
        (["--check", tmp_path], "is no folder with photos in it"),
        ([], "isn't as it was published: delete it"),
    ):
        if not arguments:
            monkeypatch.setattr(publish, "RUNTIME", damaged)
        with pytest.raises(StackError, match=error):
            run_publish(tmp_path, *arguments)
        assert not (tmp_path / "public").exists()


# --check


SAID = {"label": "ants", "probabilities": {"ants": 0.6, "bees": 0.4}, "similarity": 0.5, "ms": 9.0}
SAID["unlike"] = False
MOVED = {**SAID, "probabilities": {"ants": 0.63, "bees": 0.37}}


@pytest.mark.parametrize(
    ("name", "page", "service", "far"),
    [
        ("a.jpg", SAID, {**SAID, "label": "bees"}, True),
        ("a.jpg", {"error": "broken"}, SAID, True),
        ("a.jpg", SAID, MOVED, True),
        ("a.png", SAID, MOVED, False),
        ("a.jpg", SAID, SAID, False),
        ("a.jpg", {"error": "damaged"}, {"error": "damaged"}, False),
    ],
)
def test_check_fails_where_answers_differ(name, page, service, far):
    answers = [(Path("b.jpg"), SAID, SAID), (Path(name), page, service)]
    if far:
        with pytest.raises(StackError, match=f"differ too much: {name}"):
            page_check.report(answers)
    else:
        page_check.report(answers)


def test_check_counts_what_both_can_read(capsys):
    page_check.report([(Path("a.jpg"), SAID, SAID), (Path("b"), {"error": "x"}, {"error": "y"})])
    said = "the same label for 1 of 1 photos that both can read (of 2), and unlike for 1"
    assert said in capsys.readouterr().out
