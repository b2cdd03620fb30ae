"""predict.py: a folder of photos in, a table of answers out."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import onnx
import pytest

import predict
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel


@pytest.fixture(autouse=True)
def saved_models(model_file, tmp_path_factory, monkeypatch):
    """The folder that the newest model is taken from, with an older one that is damaged."""
    folder = tmp_path_factory.mktemp("here") / "saved_models"
    folder.mkdir()
    (folder / "a.onnx").symlink_to(model_file)
    (folder / "b.onnx").touch()
    os.utime(folder / "b.onnx", (0, 0))
    monkeypatch.chdir(folder.parent)


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


def answers(capsys, *arguments):
    """Return the rows for some arguments, after checking that a photo has an answer."""
    assert predict.main([str(word) for word in arguments])
    printed = capsys.readouterr()
    assert printed.err == ""
    if "--json" in arguments:
        return [json.loads(line) for line in printed.out.splitlines()]
    assert printed.out.startswith("path,label,confidence,similarity,unlike,error\n")
    return list(csv.DictReader(io.StringIO(printed.out)))


def test_each_photo_is_a_row_and_one_that_is_named_twice_too(
    folder, model_file, monkeypatch, capsys
):
    monkeypatch.chdir(folder)
    rows = answers(capsys, folder / "b.jpg", folder, "b.jpg", "--model", model_file)
    names = ("a/2.JPG", "a/x/1.jpeg", "b.jpg")
    assert [row["path"] for row in rows] == [*(f"{folder}/{name}" for name in names), "b.jpg"]


def test_names_run_nothing_in_spreadsheets_and_terminals(
    photo, model_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    hidden = "\x1b[2J\x9b\x7f\n.jpg"
    written = {
        "\t=1.jpg": "\\u0009=1.jpg",
        hidden: r"\u001b[2J\u009b\u007f\u000a.jpg",
        "+1.jpg": "./+1.jpg",
        "-1.jpg": "./-1.jpg",
        "=1.jpg": "./=1.jpg",
        "@1.jpg": "./@1.jpg",
        "a=1\u202f蜜.jpg": "a=1\u202f蜜.jpg",
    }
    for name in written:
        shutil.copy(photo, tmp_path / name)
    words = (".", "--model", model_file)
    assert [row["path"] for row in answers(capsys, *words)] == [*written.values()]
    assert predict.main([*map(str, words), "--json"])
    printed = capsys.readouterr().out
    assert not any(ord(c) in predict.CONTROLS for c in printed.replace("\n", ""))
    assert [json.loads(line)["path"] for line in printed.splitlines()] == [*written]


def test_answers_and_errors_are_the_services(client, pictures, photo, tmp_path, capsys):
    shutil.copytree(pictures / "val", tmp_path / "val")
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[:-2000])
    shutil.copy(photo, tmp_path / "IMG_1")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.7")
    named = tmp_path / "IMG_1", tmp_path / "notes.pdf"  # which is tried whatever the suffix
    lines = answers(capsys, tmp_path, *named, "--json")
    assert len(lines) == 9
    for line in lines:
        data = Path(line.pop("path")).read_bytes()
        assert line == client.post("/predict", content=data).json()
    capsys.readouterr()  # the service's log
    rows = answers(capsys, tmp_path)
    for row, line in zip(rows, [lines[1], *lines[3:]], strict=True):  # the named ones are not in it
        del row["path"]
        assert row == {column: str(line.get(column) or "") for column in row}
    assert not predict.main([str(tmp_path / "notes.pdf")])  # no answer: a failure


def test_a_file_that_cannot_be_read_is_an_error_of_its_own(model_file):
    expected = {"path": "gone.jpg", "error": "The file can't be read: No such file or directory."}
    assert predict.classify(OnnxModel(model_file), Path("gone.jpg")) == expected


def test_what_cannot_be_done_is_one_clear_line_before_any_work(
    folder, tmp_path, monkeypatch, capsys
):
    for arguments, error in (
        ([folder, folder / "none.jpg"], f"there is no {folder}/none.jpg"),
        ([tmp_path], "has no photos in it"),
        ([folder, "--model", "none.onnx"], "the packed model none.onnx is missing or damaged"),
    ):
        with pytest.raises(StackError, match=error):
            predict.main([str(word) for word in arguments])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StackError, match=r"saved_models/ has no \.onnx file: run `python saveToB"):
        predict.main([str(folder)])
    assert capsys.readouterr().out == ""


def test_next_prints_the_photos_to_label_first_in_the_order_of_choice(folder, monkeypatch, capsys):
    (alone,) = answers(capsys, folder, "--next", 1)
    rows = answers(capsys, folder, "--next", 9)
    every = answers(capsys, folder)
    assert alone in every
    assert sorted(row["path"] for row in rows) == [row["path"] for row in every]
    doubt = [float(row["confidence"]) for row in rows]
    assert doubt == sorted(doubt)
    monkeypatch.setattr(predict.active_learning, "choose", lambda *_: [2, 0])
    chosen = answers(capsys, folder, "--next", 2, "--json")
    assert [row["path"] for row in chosen] == [every[2]["path"], every[0]["path"]]
    assert "features" not in chosen[0]


def test_next_counts_photos_that_cannot_be_used(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "some")
    (tmp_path / "some" / "b.jpg").write_text("no photo")
    assert predict.main([str(tmp_path / "some"), "--next", "9"])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    assert printed.err == "photos that can't be used: 1; without --next: why\n"
    assert not predict.main([str(tmp_path / "some" / "b.jpg"), "--next", "9"])


def test_next_needs_a_model_with_features_and_a_number(folder, model_file, tmp_path, capsys):
    model = onnx.load(model_file)
    model.graph.output.pop()
    onnx.save(model, tmp_path / "earlier.onnx")
    arguments = [str(folder), "--model", str(tmp_path / "earlier.onnx")]
    assert predict.main(arguments)
    with pytest.raises(StackError, match=r"earlier.onnx has no features: pack again with python"):
        predict.main([*arguments, "--next", "2"])
    with pytest.raises(SystemExit):
        predict.main([str(folder), "--next", "0"])
    assert "--next must be at least 1" in capsys.readouterr().err
