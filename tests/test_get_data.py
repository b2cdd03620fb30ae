"""get_data.sh: the photos whole, or nothing and one clear line."""

import functools
import http.server
import os
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import OFFLINE, PROJECT, error_line, run, write_pictures

from simplestack.training import folders

TOOLS = "basename cat cksum cut dirname env find grep ls mkdir mv rm sed sh tr unzip wc"


def get(cwd: Path, *arguments: str, url: object = "", **environment: str):
    return run("sh", PROJECT / "get_data.sh", *arguments, cwd=cwd, DATA_URL=str(url), **environment)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def archive(pictures, tmp_path_factory) -> Path:
    """A zip archive laid out as the real one, with a file in it that is no photo."""
    folder = tmp_path_factory.mktemp("archive")
    with zipfile.ZipFile(folder / "photos.zip", "w") as file:
        for path in sorted(pictures.rglob("*.jpg")):
            file.write(path, Path("hymenoptera_data", path.relative_to(pictures)))
        file.writestr("hymenoptera_data/train/ants/imageNotFound.gif", b"GIF89a")
    return folder / "photos.zip"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with support for ranges, and notes which were asked for."""

    ranges: list[str]

    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
        self.ranges.append(f"{start}-")
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/*")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return self.wfile.write(data)

    def log_message(self, *_: object):
        pass


@pytest.fixture
def web(archive) -> Iterator[tuple[str, list[str]]]:
    """The archive's folder over HTTP: its address, and the ranges that were asked for."""
    handler = type("H", (Handler,), {"ranges": []})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(archive.parent))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.ranges
    server.shutdown()
    thread.join()
    server.server_close()


def only(tmp_path: Path, *tools: str) -> str:
    """A PATH on which nothing but the basic tools and these are found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in [*TOOLS.split(), *tools]:
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    return str(folder)


@pytest.mark.parametrize("kind", ["path", "file", "http"])
def test_archive_is_taken_from_any_kind_of_address(archive, web, tmp_path, kind):
    url = {"path": archive, "file": f"file://{archive}", "http": f"{web[0]}/photos.zip"}[kind]
    result = get(tmp_path, url=url)
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("data/*/*/*.jpg"))) == 18
    assert os.listdir(tmp_path) == ["data"]  # noqa: PTH208


def test_counts_and_next_command_are_shown(archive, tmp_path):
    lines = get(tmp_path, url=archive).stdout.splitlines()
    assert "train/ants: 6 photos, 1 other skipped" in lines
    assert "val/bees: 3 photos" in lines
    assert lines[-1] == "Next: python train.py"


def test_second_run_changes_nothing_and_says_so(archive, tmp_path):
    get(tmp_path, url=archive)
    before = contents(tmp_path)
    result = get(tmp_path, url="/nowhere")
    assert "nothing changed" in result.stdout
    assert result.returncode == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize("tool", ["curl", "wget"])
def test_broken_download_goes_on_where_it_stopped(archive, web, tmp_path, tool):
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    address, ranges = web
    url = f"{address}/photos.zip"
    check = subprocess.run(["cksum"], input=url.encode(), capture_output=True, check=True).stdout
    half = archive.read_bytes()[: archive.stat().st_size // 2]
    work = tmp_path / "work"
    work.mkdir()
    (work / f"data.{check.split()[0].decode()}.part").write_bytes(half)
    result = get(work, url=url, PATH=only(tmp_path, tool))
    assert result.returncode == 0, result.stderr
    assert ranges == [f"{len(half)}-"]
    assert len(list(work.glob("data/*/*/*.jpg"))) == 18


def test_no_network_is_one_clear_line(tmp_path):
    result = get(tmp_path, url="http://example.invalid/photos.zip", **OFFLINE)
    assert "check the address and the connection" in error_line(result)
    assert contents(tmp_path) == {}


def test_missing_file_is_one_clear_line(web, tmp_path):
    assert "can't download" in error_line(get(tmp_path, url=f"{web[0]}/nothing.zip"))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_broken_archive_is_one_clear_line(archive, tmp_path, damage):
    broken = tmp_path / "broken.zip"
    broken.write_bytes(archive.read_bytes()[:5000] if damage == "cut" else b"<html>Not found")
    (work := tmp_path / "work").mkdir()
    assert "not a whole zip archive" in error_line(get(work, url=broken))
    assert contents(work) == {}


def test_archive_with_an_encrypted_photo_is_one_clear_line(archive, tmp_path):
    data = bytearray(archive.read_bytes())
    for magic, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # its own, in the index
        data[data.index(magic) + flags] |= 1
    (locked := tmp_path / "locked.zip").write_bytes(data)
    (work := tmp_path / "work").mkdir()
    assert "encrypted" in error_line(get(work, url=locked))
    assert contents(work) == {}


def test_wrong_archive_is_one_clear_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "wrong.zip", "w") as file:
        file.writestr("something/else.txt", "no photos here")
    (work := tmp_path / "work").mkdir()
    assert "no train/ and val/" in error_line(get(work, url=tmp_path / "wrong.zip"))
    assert contents(work) == {}


def test_archive_with_a_link_is_one_clear_line(archive, tmp_path):
    linked = tmp_path / "linked.zip"
    shutil.copy(archive, linked)
    link = zipfile.ZipInfo("hymenoptera_data/train/ants/link.jpg")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(linked, "a") as file:
        file.writestr(link, "/etc/passwd")
    (work := tmp_path / "work").mkdir()
    assert "has links in it" in error_line(get(work, url=linked))
    assert contents(work) == {}


def test_archive_without_photos_is_one_clear_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as file:
        file.writestr("train/ants/a.txt", "")
        file.writestr("val/ants/a.txt", "")
    (work := tmp_path / "work").mkdir()
    assert "no photos in its train/ or val/" in error_line(get(work, url=tmp_path / "empty.zip"))
    assert contents(work) == {}


def test_what_a_killed_run_left_is_cleared(archive, tmp_path):
    with subprocess.Popen(["true"]) as ended:
        pass
    others = {f"data.get_data.{os.getpid()}", "data.get_data.mine", "data.new.v2"}
    for name in {f"data.get_data.{ended.pid}", *others}:
        (tmp_path / name).mkdir()
    assert get(tmp_path, url=archive).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"data", *others}


def test_folder_that_appears_during_the_download_stays(web, tmp_path):
    folder = only(tmp_path, "curl")
    curl = Path(folder, "curl")
    real = curl.resolve()
    curl.unlink()
    curl.write_text(f'#!/bin/sh\nmkdir data\necho mine >data/thesis.txt\nexec {real} "$@"\n')
    curl.chmod(0o755)
    (work := tmp_path / "work").mkdir()
    assert "appeared meanwhile" in error_line(get(work, url=f"{web[0]}/photos.zip", PATH=folder))
    assert (work / "data" / "thesis.txt").read_text() == "mine\n"


def test_missing_unzip_is_one_clear_line(archive, tmp_path):
    path = only(tmp_path)
    Path(path, "unzip").unlink()
    (work := tmp_path / "work").mkdir()
    assert "unzip is needed" in error_line(get(work, url=archive, PATH=path))
    assert contents(work) == {}


def test_missing_curl_and_wget_is_one_clear_line(web, tmp_path):
    (work := tmp_path / "work").mkdir()
    result = get(work, url=f"{web[0]}/photos.zip", PATH=only(tmp_path))
    assert "curl or wget is needed" in error_line(result)


@pytest.fixture
def full_disk(tmp_path) -> Iterator[Path]:
    """A file system of 64 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk)
    if mount.returncode:
        pytest.skip("a small file system can't be mounted: that needs root")
    yield disk
    run("umount", disk)


@pytest.mark.parametrize("source", ["path", "http"])
def test_full_disk_is_one_clear_line_and_leaves_nothing_half_done(archive, web, full_disk, source):
    url = archive if source == "path" else f"{web[0]}/photos.zip"
    assert "is the disk full?" in error_line(get(full_disk, url=url))
    assert not (full_disk / "data").exists()
    assert not list(full_disk.glob("*.get_data.*"))


def test_own_photos_are_taken_as_they_are(tmp_path):
    write_pictures(tmp_path / "mine", 3, ("Käfer", "Bienen"))
    (tmp_path / "mine" / "Käfer" / "day 1").mkdir()
    for name in ("b.JPG", "._b.jpg", "c.raw"):
        (tmp_path / "mine" / "Käfer" / "day 1" / name).write_bytes(b"")
    before = contents(tmp_path)
    result = get(tmp_path, url="/nowhere", DATA_DIR="mine")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert {"Käfer: 4 photos, 1 other skipped", "Bienen: 3 photos"} <= set(lines)
    assert lines[-1] == "Next: python train.py --data-dir mine"
    assert contents(tmp_path) == before


@pytest.mark.parametrize("suffix", sorted(folders.SUFFIXES))
def test_what_training_reads_is_counted(tmp_path, suffix):
    write_pictures(tmp_path / "mine", 1)
    (tmp_path / "mine" / "ants" / f"b{suffix}").write_bytes(b"")
    assert "ants: 2 photos\n" in get(tmp_path, url="/nowhere", DATA_DIR="mine").stdout


def test_an_archive_made_on_windows_is_unpacked(archive, tmp_path):
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(tmp_path / "win.zip", "w") as new:
        for item in old.infolist():
            if not item.is_dir():
                info = zipfile.ZipInfo("x")
                info.filename, info.create_system = item.filename.replace("/", "\\"), 0
                new.writestr(info, old.read(item))
    (work := tmp_path / "work").mkdir()
    result = get(work, url=tmp_path / "win.zip")
    assert result.returncode == 0, result.stderr
    assert len(list(work.glob("data/*/*/*.jpg"))) == 18


def test_foreign_folder_is_left_alone(archive, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("mine")
    assert "move it away" in error_line(get(tmp_path, url=archive))
    assert contents(tmp_path) == {"data/thesis.txt": b"mine"}


def test_sample_is_drawn_in_the_same_layout(tmp_path):
    result = get(tmp_path, "--sample")
    assert result.returncode == 0, result.stderr
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("data/*/*/")) == [
        "data/train/ants",
        "data/train/bees",
        "data/val/ants",
        "data/val/bees",
    ]
    assert "Next: python train.py --data-dir data --from-scratch" in result.stdout


def test_photos_replace_the_sample(archive, tmp_path):
    get(tmp_path, "--sample")
    get(tmp_path, url=archive)
    assert len(list(tmp_path.glob("data/*/*/*.jpg"))) == 18
    assert not (tmp_path / "data" / "SAMPLE.txt").exists()


def test_sample_never_replaces_photos(archive, tmp_path):
    get(tmp_path, url=archive)
    before = contents(tmp_path)
    assert "DATA_DIR=data-sample" in error_line(get(tmp_path, "--sample"))
    assert contents(tmp_path) == before


def test_other_folder_can_be_named(archive, tmp_path):
    result = get(tmp_path, url=archive, DATA_DIR="other/photos")
    assert (tmp_path / "other/photos/train/ants").is_dir(), result.stderr
    assert "Next: python train.py --data-dir other/photos" in result.stdout


def test_unknown_argument_is_one_clear_line(tmp_path):
    assert "--help" in error_line(get(tmp_path, "--smaple"))
