"""get_data.sh: the photos whole, or nothing and one clear line."""

import functools
import http.server
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import OFFLINE, PROJECT, error_line, run, write_pictures

from simplestack.training import folders

TOOLS = "basename cat cksum cut dirname env find grep ls mkdir mv rm sed sh tr wc"
UNAVAILABLE = 69  # after which run.sh goes on without the photos
SHOWN = """\
train/ants: 6 photos, 1 other skipped
train/bees: 6 photos
val/ants: 3 photos
val/bees: 3 photos

Next: python train.py
"""


def get(cwd: Path, *arguments: str, url: object = "", **environment: str):
    cwd.mkdir(exist_ok=True)
    return run("sh", PROJECT / "get_data.sh", *arguments, cwd=cwd, DATA_URL=str(url), **environment)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def archive(pictures, tmp_path_factory) -> Path:
    """A zip archive laid out as the real one, with a file in it that is no photo."""
    folder = tmp_path_factory.mktemp("archive")
    with zipfile.ZipFile(folder / "photos.zip", "w") as file:
        for path in sorted(pictures.rglob("*.jpg")):
            file.write(path, Path("hymenoptera_data", path.relative_to(pictures)))
        file.writestr("hymenoptera_data/train/ants/imageNotFound.gif", b"GIF89a")
    return folder / "photos.zip"


@pytest.fixture(scope="module")
def half(archive) -> int:
    return archive.stat().st_size // 2


def rewrite(archive: Path, new: Path, rename) -> Path:
    """Write an archive whose entries have other names, or are left out if that is empty."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(new, "w") as file:
        for item in old.infolist():
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = rename(item.filename), 0
            if info.filename:
                file.writestr(info, old.read(item))
    return new


def encrypt(archive: Path) -> bytes:
    """Return the archive with its first file marked as encrypted."""
    content = bytearray(archive.read_bytes())
    for magic, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # its own, in the index
        content[content.index(magic) + flags] |= 1
    return bytes(content)


class Web(http.server.SimpleHTTPRequestHandler):
    """Serves files, notes from which byte on they are asked for, and breaks off on demand."""

    url: str
    asked: list[int]
    until: int | None = None
    resumed = 206  # the status of an answer that isn't from the first byte on
    goes_on: threading.Event

    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
        self.asked.append(start)
        path = Path(self.translate_path(self.path))
        status = self.resumed if start else 200
        if status == 416 or not path.is_file():
            return self.send_error(status if path.is_file() else 404)
        if status == 200:
            start = 0
        data = path.read_bytes()
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : self.until])
        return self.goes_on.wait()

    def log_message(self, *_: object):
        pass


@pytest.fixture
def web(archive) -> Iterator[type[Web]]:
    """The archive over HTTP."""
    handler = type("Handler", (Web,), {"asked": [], "goes_on": threading.Event()})
    handler.goes_on.set()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(archive.parent))
    )
    handler.url = f"http://127.0.0.1:{server.server_port}/photos.zip"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield handler
    handler.goes_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


def only(tmp_path: Path, *tools: str) -> str:
    """A PATH on which nothing but the basic tools and these are found."""
    folder = Path(tempfile.mkdtemp(prefix="bin", dir=tmp_path))
    for tool in {*TOOLS.split(), *tools}:
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    return str(folder)


def wrap(folder: str, tool: str, script: str) -> str:
    """Run a script before a tool of such a PATH, which is returned."""
    file = Path(folder, tool)
    real = file.resolve()
    file.unlink()
    file.write_text(f'#!/bin/sh\n{script}\nexec {real} "$@"\n')
    file.chmod(0o755)
    return folder


def has(tool: str) -> str:
    """The name of a tool that the test needs."""
    return tool if shutil.which(tool) else pytest.skip(f"{tool} is not installed: apt install it")


def test_photos_come_from_any_kind_of_address(archive, web, tmp_path, subtests):
    for url in (archive, f"file://{archive}", web.url):
        with subtests.test(url=url):
            work = tmp_path / str(url)[:4].strip("/")
            result = get(work, url=url)
            downloading = f"Downloading {url}\n" if url == web.url else ""
            assert (result.returncode, result.stderr) == (0, "")
            assert result.stdout == downloading + SHOWN
            assert len(list(work.glob("data/*/*/*.jpg"))) == 18
            assert names(work) == {"data"}


def test_archives_of_other_layouts_are_unpacked(archive, tmp_path, subtests):
    layouts = {
        "made on Windows": lambda name: name.replace("/", "\\"),
        "no folder around it": lambda name: name.partition("/")[2],
    }
    for layout, rename in layouts.items():
        with subtests.test(layout):
            url = rewrite(archive, tmp_path / f"{layout}.zip", rename)
            result = get(tmp_path / layout, url=url)
            assert result.stdout == SHOWN, result.stderr
            assert names(tmp_path / layout) == {"data"}


@pytest.mark.parametrize("tool", ["curl", "wget"])
def test_broken_download_goes_on_where_it_stopped(archive, web, half, tmp_path, tool):
    path, work = only(tmp_path, "unzip", has(tool)), tmp_path / "work"
    web.until = half
    result = get(work, url=web.url, PATH=path)
    assert f"can't download {web.url}" in error_line(result)
    assert "run this again to resume" in error_line(result)
    assert result.returncode == UNAVAILABLE
    assert list(contents(work).values()) == [archive.read_bytes()[:half]]
    web.until = None
    web.asked.clear()
    result = get(work, url=web.url, PATH=path)
    assert result.returncode == 0, result.stderr
    assert web.asked == [half]
    assert len(list(work.glob("data/*/*/*.jpg"))) == 18
    assert names(work) == {"data"}


def test_a_server_that_cannot_resume_is_asked_for_all(web, half, tmp_path, subtests):
    path = only(tmp_path, "unzip", has("curl"))
    for status in (200, 416):  # the latter says that all of it is there
        with subtests.test(status=status):
            work = tmp_path / str(status)
            web.until, web.resumed = half, status
            get(work, url=web.url, PATH=path)
            web.until = None
            result = get(work, url=web.url, PATH=path)
            if status == 416:
                message = "is not a whole zip archive, or encrypted: run this again"
                assert message in error_line(result)
                assert names(work) == set()
                result = get(work, url=web.url, PATH=path)
            assert result.stdout.endswith(SHOWN), result.stderr
            assert web.asked == [0, half, 0]
            web.asked.clear()


def test_what_was_downloaded_and_not_unpacked_is_not_downloaded_again(web, tmp_path):
    path, work = only(tmp_path, "unzip", has("curl")), tmp_path / "work"
    wrap(path, "unzip", '[ "$2" = -o ] && case $* in *" -d "*) exit 50 ;; esac')
    result = get(work, url=web.url, PATH=path)
    assert "can't unpack into data.get_data." in error_line(result)
    assert [name.rpartition(".")[2] for name in names(work)] == ["part"]
    result = get(work, url=web.url)
    assert result.stdout == SHOWN, result.stderr
    assert web.asked == [0]
    assert names(work) == {"data"}


def test_a_download_that_is_stopped_leaves_only_what_resumes_it(web, half, tmp_path, subtests):
    web.until = half
    web.goes_on.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        with subtests.test(number):
            (work := tmp_path / number.name).mkdir()
            started = subprocess.Popen(
                ["sh", PROJECT / "get_data.sh"],
                cwd=work,
                env={**os.environ, "DATA_URL": web.url},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            while not any(part.stat().st_size for part in work.glob("*.part")):
                assert started.poll() is None
                time.sleep(0.01)
            assert len(names(work)) == 2  # with the folder to unpack into
            os.killpg(started.pid, number)
            assert started.wait(timeout=30) == 130
            assert [name.rpartition(".")[2] for name in names(work)] == ["part"]


def test_progress_is_shown_on_a_terminal(web, tmp_path):
    terminal, stderr = os.openpty()
    script = ["sh", PROJECT / "get_data.sh"]
    environment = {**os.environ, "DATA_URL": web.url, "PATH": only(tmp_path, "unzip", has("curl"))}
    subprocess.run(
        script, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, check=True
    )
    os.write(stderr, b"the end")  # or reading nothing would wait for ever
    assert b"100.0%" in os.read(terminal, 100_000)
    os.close(terminal)
    os.close(stderr)


def test_what_is_missing_is_one_clear_line(archive, web, tmp_path, subtests):
    photos = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
    missing_url = web.url.replace("photos", "nothing")
    nowhere = "there is no file /nowhere.zip: check DATA_URL"
    both = ("curl", "unzip")
    for message, code, url, tools in (
        (f"can't download {photos}: check the address and the connection", 69, "", both),
        (f"can't download {missing_url}", 69, missing_url, both),
        (f"can't download {missing_url}", 69, missing_url, ("wget", "unzip")),
        ("curl or wget is needed", 69, web.url, ("unzip",)),
        ("unzip is needed", 69, archive, ()),
        (nowhere, 1, "/nowhere.zip", both),
        (nowhere, 1, "file:///nowhere.zip", both),
    ):
        with subtests.test(message, tools=tools):
            path = only(tmp_path, *map(has, tools))
            offline = {} if url else OFFLINE
            result = get(tmp_path / "work", url=url, PATH=path, **offline)
            assert message in error_line(result)
            assert result.returncode == code
            assert names(tmp_path / "work") == set()


def test_an_archive_that_is_not_the_photos_is_one_clear_line(archive, tmp_path, subtests):
    def rewritten(rename) -> bytes:
        return rewrite(archive, tmp_path / "new.zip", rename).read_bytes()

    def linked() -> bytes:
        link = zipfile.ZipInfo("hymenoptera_data/train/ants/link.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        shutil.copy(archive, tmp_path / "new.zip")
        with zipfile.ZipFile(tmp_path / "new.zip", "a") as file:
            file.writestr(link, "/etc/passwd")
        return (tmp_path / "new.zip").read_bytes()

    whole = archive.read_bytes()
    no_train, no_val = (
        rewritten(lambda name, part=part: name.replace(".jpg", ".txt") if part in name else name)
        for part in ("/train/", "/val/")
    )
    for name, content, message in (
        ("cut", whole[:5000], "is not a whole zip archive"),
        ("text", b"<html>Not found", "is not a whole zip archive"),
        ("encrypted", encrypt(archive), "or encrypted"),
        ("other files", rewritten(lambda name: name.replace("/", "_")), "no train/ and val/"),
        ("only train", rewritten(lambda n: "/train/" in n and n), "no train/ and val/"),
        ("only val", rewritten(lambda n: "/val/" in n and n), "no train/ and val/"),
        ("with a link", linked(), "has links in it"),
        ("no photos in train", no_train, "no photos in its train/ or val/"),
        ("no photos in val", no_val, "no photos in its train/ or val/"),
    ):
        with subtests.test(name):
            (tmp_path / "bad.zip").write_bytes(content)
            result = get(tmp_path / "work", url=tmp_path / "bad.zip")
            assert message in error_line(result)
            assert result.returncode == 1
            assert names(tmp_path / "work") == set()
            assert (tmp_path / "bad.zip").exists()


def test_nothing_is_asked_on_a_terminal(archive, tmp_path, subtests):
    (tmp_path / "encrypted.zip").write_bytes(encrypt(archive))
    shutil.copy(archive, tmp_path / "doubled.zip")
    name = "hymenoptera_data/train/ants/imageNotFound.gif"
    with zipfile.ZipFile(tmp_path / "doubled.zip", "a") as file, pytest.warns(match="Duplicate"):
        file.writestr(name, b"GIF89a")
    terminal = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    for url, code, said in (("encrypted", 1, "or encrypted"), ("doubled", 0, "Next:")):
        with subtests.test(url):
            done = subprocess.run(
                [sys.executable, "-c", terminal, "sh", PROJECT / "get_data.sh"],
                cwd=tmp_path,
                env={**os.environ, "DATA_URL": str(tmp_path / f"{url}.zip")},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,  # if it asks, it waits for ever
                check=False,
            )
            assert done.returncode == code, done.stdout
            assert said in done.stdout


def test_what_a_killed_run_left_is_cleared(archive, tmp_path):
    with subprocess.Popen(["true"]) as ended:
        pass
    others = {f"data.get_data.{os.getpid()}", "data.get_data.mine", "data.get_data.", "data.new.v2"}
    for name in {f"data.get_data.{ended.pid}", f"data.get_data.{ended.pid}.old", *others}:
        (tmp_path / name).mkdir()
    assert get(tmp_path, url=archive).returncode == 0
    assert names(tmp_path) == {"data", *others}


def test_folder_that_appears_during_the_download_stays(web, tmp_path):
    path = wrap(
        only(tmp_path, "unzip", has("curl")), "curl", "mkdir data; echo mine >data/thesis.txt"
    )
    result = get(tmp_path / "work", url=web.url, PATH=path)
    assert "data has appeared meanwhile: nothing changed" in error_line(result)
    assert (tmp_path / "work" / "data" / "thesis.txt").read_text() == "mine\n"
    assert not list(tmp_path.glob("work/*.get_data.*"))


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


def test_full_disk_is_one_clear_line_and_leaves_nothing_half_done(
    archive, web, full_disk, tmp_path, subtests
):
    for tool, url, left in (
        ("sh", archive, []),
        ("curl", web.url, ["part"]),
        ("wget", web.url, ["part"]),
    ):
        with subtests.test(tool):
            result = get(full_disk, url=url, PATH=only(tmp_path, "unzip", has(tool)))
            assert "is the disk full? Make room and run this again" in error_line(result)
            assert result.returncode == 1
            parts = list(full_disk.iterdir())
            assert [part.suffix[1:] for part in parts] == left
            for part in parts:
                part.unlink()


def test_own_photos_are_counted_and_stay_as_they_are(tmp_path):
    bees = tmp_path / "mein Ordner" / "Bienen"
    write_pictures(bees.parent, 3, ("Käfer", "Bienen"))
    (bees / "day 1" / "__MACOSX").mkdir(parents=True)
    (bees / ".hidden").mkdir()
    for suffix in folders.SUFFIXES:
        (bees / f"a{suffix}").touch()
        (bees / "day 1" / f"B{suffix.upper()}").touch()
    for name in (
        *("._b.jpg", ".hidden/b.jpg", "day 1/__MACOSX/b.jpg", "Thumbs.db", "desktop.ini"),
        *("c.raw", "jpg", "photo.jpg.txt"),
        "../loose.jpg",
    ):
        (bees / name).touch()
    before = contents(tmp_path)
    result = get(tmp_path, url="/nowhere", DATA_DIR="mein Ordner/")
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "The photos are in mein Ordner/ already: nothing changed.",
        f"Bienen: {3 + 2 * len(folders.SUFFIXES)} photos, 3 other skipped",
        "Käfer: 3 photos",
        "",
        "Next: python train.py --data-dir 'mein Ordner'",
    ]
    assert result.returncode == 0
    assert contents(tmp_path) == before


def test_another_folder_can_be_named_and_the_next_command_left_out(archive, tmp_path):
    result = get(tmp_path, url=archive, DATA_DIR="other/photos")
    assert (tmp_path / "other/photos/train/ants").is_dir(), result.stderr
    assert result.stdout == SHOWN.replace("train.py", "train.py --data-dir other/photos")
    assert names(tmp_path / "other") == {"photos"}
    before = contents(tmp_path)
    again = get(tmp_path, url="/nowhere", DATA_DIR="other/photos", NO_NEXT="yes")
    counts = SHOWN.partition("\n\n")[0]
    assert again.stdout == f"The photos are in other/photos/ already: nothing changed.\n{counts}\n"
    assert contents(tmp_path) == before


def test_what_is_not_the_photos_is_left_alone(archive, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("mine")
    assert "data exists, but has no photos in it: move it away" in error_line(
        get(tmp_path, url=archive)
    )
    assert "DATA_DIR=data-sample" in error_line(get(tmp_path, "--sample"))
    assert contents(tmp_path) == {"data/thesis.txt": b"mine"}


def test_a_sample_is_drawn_once_and_photos_replace_it_for_good(archive, tmp_path):
    result = get(tmp_path, "--sample")
    assert result.returncode == 0, result.stderr
    classes = ["data/train/ants", "data/train/bees", "data/val/ants", "data/val/bees"]
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("data/*/*/")) == classes
    said = "\nThese are drawn pictures, not photos.\n\nNext: python train.py --data-dir data"
    assert result.stdout.endswith(f"{said} --from-scratch\n")
    drawn = contents(tmp_path)

    again = get(tmp_path, "--sample")
    already = "The drawn pictures are in data/ already: nothing changed.\n"
    assert again.stdout == already + result.stdout
    assert contents(tmp_path) == drawn

    assert get(tmp_path, url=archive).stdout == SHOWN
    photos = contents(tmp_path)
    assert len(photos) == 18 + 1
    assert names(tmp_path) == {"data"}

    assert "DATA_DIR=data-sample" in error_line(get(tmp_path, "--sample"))
    assert contents(tmp_path) == photos


def test_a_sample_that_cannot_be_drawn_is_one_clear_line(tmp_path):
    (tmp_path / "work").mkdir()
    shutil.copy(PROJECT / "get_data.sh", tmp_path)  # where there is no simplestack
    result = run("sh", tmp_path / "get_data.sh", "--sample", cwd=tmp_path / "work")
    assert "can't draw the pictures: that needs the packages" in error_line(result)
    assert names(tmp_path / "work") == set()


def test_arguments_are_explained(tmp_path, subtests):
    for option in ("--help", "-h"):
        with subtests.test(option):
            result = get(tmp_path, option)
            assert result.returncode == 0
            assert result.stdout.startswith("Get the photos: 397 ants and bees")
            assert "\n  sh get_data.sh --sample    draw a few pictures instead" in result.stdout
            assert "set -eu" not in result.stdout
    assert "unknown argument --smaple: see sh get_data.sh --help" in error_line(
        get(tmp_path, "--smaple")
    )
    assert names(tmp_path) == set()
