"""predict.py: a folder of photos in, a table of answers out."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

import predict
from simplestack.serving.errors import StackError

pytestmark = pytest.mark.usefixtures("bento")


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    """A folder with photos at several depths, and files that are none."""
    folder = tmp_path_factory.mktemp("mine") / "photos"
    photos = sorted(pictures.glob("val/*/*.jpg"))
    for name, photo in zip(("b.jpg", "a/2.JPG", "a/x/1.jpeg"), photos, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder / name)
    (folder / "notes.txt").write_text("hello")
    (folder / ".hidden.jpg").write_text("hello")
    return folder


def answers(capsys, *paths, as_json=False):
    """Return the rows for some paths, after checking that a photo was answered, and all is said."""
    assert predict.main([*paths], "", as_json)
    said = capsys.readouterr()
    assert said.err == ""
    if as_json:
        return [json.loads(line) for line in said.out.splitlines()]
    assert said.out.startswith("path,label,confidence,similarity,unlike,error\n")
    return list(csv.DictReader(io.StringIO(said.out)))


def test_each_photo_is_a_row_and_one_that_is_named_twice_too(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    rows = answers(capsys, folder / "b.jpg", folder, Path("b.jpg"))
    names = ("a/2.JPG", "a/x/1.jpeg", "b.jpg")
    assert [row["path"] for row in rows] == [*(f"{folder}/{name}" for name in names), "b.jpg"]
    for row in rows:
        assert row["label"] in {"ants", "bees"}
        assert 0.5 <= float(row["confidence"]) <= 1
        assert 0 <= float(row["similarity"]) <= 1
        assert (row["unlike"], row["error"]) == ("", "")  # too few training photos


def test_answers_and_errors_are_the_services(client, pictures, photo, tmp_path, capsys):
    shutil.copytree(pictures / "val", tmp_path / "val")
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[:-2000])
    shutil.copy(photo, tmp_path / "IMG_1")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.7")
    named = tmp_path / "IMG_1", tmp_path / "notes.pdf"  # which is tried whatever the suffix
    lines = answers(capsys, tmp_path, *named, as_json=True)
    assert len(lines) == 9
    for line in lines:
        data = Path(line.pop("path")).read_bytes()
        assert line == client.post("/predict", content=data).json()
    capsys.readouterr()  # the service's log
    rows = answers(capsys, tmp_path)
    assert len(rows) == 7
    assert [row["error"] for row in rows if not row["label"]] == [lines[1]["error"]]
    assert not predict.main([tmp_path / "notes.pdf"], "", as_json=False)  # no answer: a failure


def test_what_cannot_be_done_is_one_clear_line_before_any_work(folder, tmp_path, capsys):
    for paths, name, error in (
        ([folder, folder / "none.jpg"], "", f"there is no {folder}/none.jpg"),
        ([tmp_path], "", "has no photos in it"),
        ([folder], "wasps", "nothing called wasps is packed yet: .* python saveToBento.py"),
    ):
        with pytest.raises(StackError, match=error):
            predict.main(paths, name, as_json=False)
    assert capsys.readouterr().out == ""
