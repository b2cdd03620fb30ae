"""Corrections that were downloaded from the page: put into a data folder, all or none."""

import functools
import hashlib
import shutil
import zipfile

import pytest
from helpers import encode, split_folder, write_pictures
from PIL import Image

from simplestack.serving.errors import StackError
from simplestack.training import corrections, folders


@functools.cache
def drawn():
    return [encode(Image.new("RGB", (40, 30), (i, 0, 7)), "PNG") for i in range(40)]


def photos(count, *, kept_out=False):
    """Return so many pictures that are kept out, or not, by their contents."""
    digests = {photo: int(hashlib.sha256(photo).hexdigest(), 16) for photo in drawn()}
    return [photo for photo, x in digests.items() if (x % 5 == 0) == kept_out][:count]


def pack(path, members):
    """Write a ZIP of members, by their names, or by their ZipInfo."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def contents(folder):
    """Return the files in a folder and beside it, by their paths."""
    paths = (path for path in folder.parent.rglob("*") if path.is_file())
    return {str(p.relative_to(folder.parent)): p.read_bytes() for p in paths if p.suffix != ".zip"}


def add(folder, members):
    """Add members; return the new files, by the folders that they are in."""
    before = contents(folder)
    corrections.add(pack(folder.parent / "a.zip", members), folder)
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    new = sorted(after.keys() - before.keys())
    digests = [hashlib.sha256(after[name]).hexdigest()[:16] for name in new]
    assert [name.rpartition("/")[2] for name in new] == [f"{x}.png" for x in digests]
    return [name.rpartition("/")[0] for name in new]


@pytest.fixture(params=["data", "Train", "flat"])
def layout(request, tmp_path):
    """A data folder, and its folders for training and validation."""
    folder = tmp_path / "data"
    if request.param == "flat":
        write_pictures(folder, 3)
        return folder, folder, folder
    split_folder(folder)
    if request.param == "Train":
        (folder / "train").rename(folder / "Train")
    return folder, folders.root_folders(folder)[0], folder / "val"


def test_corrections_go_where_the_layout_wants_them_and_every_fifth_is_kept_out(
    layout, capsys, tmp_path
):
    folder, train, val = (path.relative_to(tmp_path).as_posix() for path in layout)
    (first, second, third, fourth), (kept,) = photos(4), photos(1, kept_out=True)
    named = '「蜜蜂」 "wild"'
    members = {
        "ants/1.png": first,
        "ants/2.PNG": kept,
        f"{named}/3.png": second,
        f"{named}/4.png": third,
        "5.png": fourth,
        "corrections.csv": "file,answer",
    }
    expected = [f"{train}/ants", f"{folder}.held-out/ants", f"{folder}.none"]
    expected += [f"{train}/{named}", f"{val}/{named}"]
    assert sorted(add(layout[0], members)) == sorted(expected)
    told = capsys.readouterr().out.splitlines()
    assert f"ants: 1 added to {layout[1]}" in told
    assert f"ants: 1 added to {layout[0]}.held-out" in told
    assert f"none of these: 1 added to {layout[0]}.none" in told
    assert f"{named} (new): " in "\n".join(told)
    assert folders.scan(layout[0]).classes() == ["ants", "bees", named]
    assert all(folders.split_photos(folders.scan(layout[0]), seed=0).values())
    assert add(layout[0], members) == []
    assert "added" not in capsys.readouterr().out


def test_a_photo_that_is_there_under_another_class_is_named_and_left(layout, capsys):
    folder, train, _ = layout
    there, none = train / "bees" / "1.png", f"{folder}.none"
    (other,) = photos(1)
    add(folder, {"1.png": other})
    assert add(folder, {"ants/1.png": there.read_bytes(), "ants/2.png": other}) == []
    told = capsys.readouterr().out
    assert f"ants: 1 already there: {there}\n" in told
    assert f"ants: 1 already there: {none}/{hashlib.sha256(other).hexdigest()[:16]}.png\n" in told


def test_what_file_managers_add_to_an_archive_is_ignored(layout):
    (photo,) = photos(1)
    extras = ("__MACOSX/ants/._1.png", "ants/.DS_Store", "ants/Thumbs.db", "ants/")
    assert len(add(layout[0], {"ants/1.png": photo, **dict.fromkeys(extras, b"")})) == 1


def attributes(name, **values):
    info = zipfile.ZipInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


PLAIN = "is no plain photo in the folder of a class"
REFUSED = [
    *((name, b"x", f"{name} {PLAIN}") for name in ("../a.jpg", "../ants/a.jpg", "/a.jpg")),
    *((name, b"x", PLAIN) for name in ("ants/../../a.jpg", "..\\a.jpg", "/ants/a.jpg")),
    *((name, b"x", f"{name} {PLAIN}") for name in ("a/b/c.jpg", "ants/a.exe", "ants/a.jpg.sh")),
    (attributes("ants/a.jpg", external_attr=0o120777 << 16), b"/etc/passwd", PLAIN),
    ("ants/a.bmp", bytes(10**6), "it unpacks to more than photos do"),
]


@pytest.mark.parametrize(("name", "content", "said"), REFUSED)
def test_unsafe_paths_other_files_links_and_bombs_are_refused_whole(
    layout, tmp_path, name, content, said
):
    folder, before = layout[0], contents(layout[0])
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("ants/0.png", photos(1)[0])
        info = name if isinstance(name, zipfile.ZipInfo) else attributes(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.create_system = 3
        file.writestr(info, content)
    with pytest.raises(StackError) as refused:
        corrections.add(archive, folder)
    assert said in str(refused.value)
    assert contents(folder) == before


def test_damaged_and_encrypted_archives_are_refused(layout, tmp_path):
    folder, before = layout[0], contents(layout[0])
    (photo,) = photos(1)
    whole = pack(tmp_path / "a.zip", {"ants/1.png": photo}).read_bytes()
    at = whole.index(photo)
    latin = whole.replace(b"ants/1", b"ants/\xe9")
    encrypted = bytearray(whole)
    encrypted[whole.index(b"PK\1\2") + 8] |= 1
    for data, said in (
        (whole[:-30], "not a whole ZIP archive: download it again"),
        (whole[:at] + bytes(9) + whole[at + 9 :], "not a whole ZIP archive: download it again"),
        (latin, "not a whole ZIP archive: download it again"),
        (b"", "not a whole ZIP archive: download it again"),
        (encrypted, PLAIN),
    ):
        (tmp_path / "a.zip").write_bytes(data)
        with pytest.raises(StackError, match=said):
            corrections.add(tmp_path / "a.zip", folder)
        assert contents(folder) == before


def test_a_new_class_needs_a_photo_to_train_and_one_to_validate(layout):
    folder, before = layout[0], contents(layout[0])
    (one,), (kept,), (other,) = photos(1), photos(1, kept_out=True), photos(2)[1:]
    for members in ({"wasps/1.png": one, "wasps/2.png": kept}, {"wasps/2.png": kept}):
        with pytest.raises(StackError, match="the new class wasps needs two photos besides"):
            add(folder, {"ants/1.png": other, **members})
        assert contents(folder) == before


def test_beside_train_and_val_no_class_is_called_so(tmp_path):
    folder = split_folder(tmp_path / "data")
    before = contents(folder)
    with pytest.raises(StackError, match="a class can't be called val"):
        add(folder, {f"val/{i}.png": photo for i, photo in enumerate(photos(3))})
    assert contents(folder) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_ends_it_half_way_leaves_everything_as_it_was(layout, monkeypatch, error):
    folder, before = layout[0], contents(layout[0])
    left = sorted(path for path in folder.rglob("*") if path.is_dir())

    def move(file, path, move=shutil.move):
        if path.parent.name == "wasps":
            raise error
        return move(file, path)

    monkeypatch.setattr(corrections.shutil, "move", move)
    members = {f"{x}/{i}.png": p for i, p in enumerate(photos(6)) for x in ("ants", "wasps")}
    members = {name: p for i, (name, p) in enumerate(members.items()) if i % 4 in {0, 3}}
    with pytest.raises(type(error)):
        add(folder, members)
    assert contents(folder) == before
    assert sorted(path for path in folder.rglob("*") if path.is_dir()) == left
