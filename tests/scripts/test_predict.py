"""predict.py: a folder of photos in, a table of answers out."""

import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving.conftest import in_process
from starlette.testclient import TestClient

import predict
from simplestack.serving.errors import StackError

pytestmark = [
    pytest.mark.usefixtures("bento"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_fields'"),  # by BentoML
]


@pytest.fixture(scope="module")
def service(bento) -> Iterator[TestClient]:
    with in_process(bento) as client:
        yield client


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory) -> Path:
    """A folder with photos at several depths, and files that are none."""
    folder = tmp_path_factory.mktemp("mine") / "photos"
    photos = sorted(pictures.glob("val/*/*.jpg"))
    for name, photo in zip(("b.jpg", "a/2.JPG", "a/x/1.jpeg"), photos, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder / name)
    (folder / "notes.txt").write_text("hello")
    (folder / ".hidden.jpg").write_text("hello")
    return folder


def answers(capsys, *paths: Path, as_json: bool = False) -> list[dict]:
    """Return the rows for some paths, after checking that a photo was answered, and all is said."""
    assert predict.main([*paths], "", as_json)
    said = capsys.readouterr()
    assert said.err == ""
    if as_json:
        return [json.loads(line) for line in said.out.splitlines()]
    assert said.out.startswith("path,label,confidence,similarity,unlike,error\n")
    return list(csv.DictReader(io.StringIO(said.out)))


def test_each_photo_of_a_folder_is_a_row(folder, capsys):
    rows = answers(capsys, folder)
    assert [row["path"] for row in rows] == [
        str(folder / name) for name in ("a/2.JPG", "a/x/1.jpeg", "b.jpg")
    ]
    assert all(row["label"] in {"ants", "bees"} for row in rows)
    assert all(0.5 <= float(row["confidence"]) <= 1 for row in rows)
    assert all(0 <= float(row["similarity"]) <= 1 for row in rows)
    assert {row["unlike"] for row in rows} == {""}  # too few training photos


def test_a_photo_that_is_named_twice_is_one_row(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    rows = answers(capsys, folder / "b.jpg", folder, Path("b.jpg"))
    assert len(rows) == 4  # a relative path is another


def test_answers_are_the_services(service, pictures, capsys):
    lines = answers(capsys, pictures / "val", as_json=True)
    assert len(lines) == 6
    for answer in lines:
        photo = Path(answer.pop("path")).read_bytes()
        assert answer == service.post("/predict", content=photo).json()


def test_a_broken_photo_is_a_row_with_the_services_error(service, photo, tmp_path, capsys):
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[:-2000])
    shutil.copy(photo, tmp_path / "whole.jpg")
    broken, whole = answers(capsys, tmp_path)
    error = service.post("/predict", content=(tmp_path / "cut.jpg").read_bytes()).json()["error"]
    assert broken == {**broken, "label": "", "confidence": "", "error": error}
    assert whole["error"] == ""


def test_a_named_photo_is_tried_whatever_its_suffix(photo, tmp_path, capsys):
    shutil.copy(photo, tmp_path / "IMG_1")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.7")
    answer, error = answers(capsys, tmp_path / "IMG_1", tmp_path / "notes.pdf", as_json=True)
    assert sorted(answer["probabilities"]) == ["ants", "bees"]
    assert list(error) == ["path", "error"]
    assert "This is a PDF file" in error["error"]


def test_no_answer_at_all_is_a_failure(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"junk")
    assert not predict.main([tmp_path], "", as_json=False)
    assert "not an image" in capsys.readouterr().out


def test_what_cannot_be_done_is_one_clear_line_before_any_work(folder, tmp_path, capsys):
    for paths, name, error in (
        ([folder, folder / "none.jpg"], "", f"there is no {folder}/none.jpg"),
        ([tmp_path], "", "has no photos in it"),
        ([folder], "wasps", "nothing called wasps is packed yet: .* python saveToBento.py"),
    ):
        with pytest.raises(StackError, match=error):
            predict.main(paths, name, as_json=False)
    assert capsys.readouterr().out == ""
