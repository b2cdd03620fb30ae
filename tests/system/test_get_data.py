"""get_data.sh: the photos whole, or nothing and one clear line."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import OFFLINE, PROJECT, error_line, run, wait_until, write_pictures

from simplestack.training import folders

SHOWN = (
    "train/ants: 6 photos, 1 other skipped\ntrain/bees: 6 photos\nval/ants: 3 photos\n"
    "val/bees: 3 photos\n\nNext: python train.py\n"
)
BASIC = "basename cat cksum cut dirname env find grep ls mkdir mv rm sed sh tr wc"


def get(cwd, *arguments, url="", **environment):
    cwd.mkdir(exist_ok=True)
    return run("sh", PROJECT / "get_data.sh", *arguments, cwd=cwd, DATA_URL=str(url), **environment)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def archive(pictures, tmp_path_factory):
    """A zip archive laid out as the real one, with a file in it that is no photo."""
    archive = tmp_path_factory.mktemp("archive") / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(pictures.rglob("*.jpg")):
            file.write(path, Path("hymenoptera_data", path.relative_to(pictures)))
        file.writestr("hymenoptera_data/train/ants/imageNotFound.gif", b"GIF89a")
    return archive


def rewrite(archive, new, rename):
    """Write an archive whose entries have other names, or are left out if that is empty."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(new, "w") as file:
        for name in filter(rename, old.namelist()):
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = rename(name), 0
            file.writestr(info, old.read(name))
    return new


def encrypt(archive):
    """Return the archive with its first file marked as encrypted, in both places."""
    content = archive.read_bytes().replace(b"PK\3\4\x14\0\0", b"PK\3\4\x14\0\1", 1)
    return content.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1", 1)


class Web(BaseHTTPRequestHandler):
    """Serves one file, notes from which byte on it is asked for, and breaks off on demand."""

    def do_GET(self):
        web, start = self.server, int(self.headers.get("Range", "bytes=0-")[6:-1])
        web.asked.append(start)
        status = web.resumed if start else 200
        if status == 416 or not web.url.endswith(self.path):
            return self.send_error(status if start else 404)
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(web.data) - 1}/{len(web.data)}")
        start = start if status == 206 else 0
        self.send_header("Content-Length", str(len(web.data) - start))
        self.end_headers()
        self.wfile.write(web.data[start : web.until])
        return web.goes_on.wait()

    def log_message(self, *_):
        pass


@pytest.fixture
def web(archive):
    """The archive over HTTP; a resumed answer has the status `resumed`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        server.url = f"http://127.0.0.1:{server.server_port}/photos.zip"
        server.data, server.asked = archive.read_bytes(), []
        server.half, server.until, server.resumed = len(server.data) // 2, None, 206
        server.goes_on = threading.Event()
        server.goes_on.set()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.goes_on.set()
        server.shutdown()
        thread.join()


def only(tmp_path, *tools, **scripts):
    """A PATH on which nothing but the basic tools and these are found; scripts run before them."""
    folder = Path(tempfile.mkdtemp(prefix="bin", dir=tmp_path))
    for tool in {*BASIC.split(), *tools}:
        found = shutil.which(tool) or pytest.skip(f"{tool} is not installed: apt install it")
        (folder / tool).write_text(f'#!/bin/sh\n{scripts.get(tool, "")}\nexec {found} "$@"\n')
        (folder / tool).chmod(0o755)
    return str(folder)


def test_photos_come_from_any_kind_of_address_and_layout(archive, web, tmp_path):
    windows = rewrite(archive, tmp_path / "windows.zip", lambda name: name.replace("/", "\\"))
    bare = rewrite(archive, tmp_path / "bare.zip", lambda name: name.partition("/")[2])
    for i, url in enumerate((archive, f"file://{archive}", web.url, windows, bare)):
        work = tmp_path / str(i)
        result = get(work, url=url)
        downloading = f"Downloading {url}\n" if url == web.url else ""
        assert (result.returncode, result.stdout, result.stderr) == (0, downloading + SHOWN, "")
        assert len(list(work.glob("data/*/*/*.jpg"))) == 18
        assert names(work) == {"data"}


@pytest.mark.parametrize(
    ("tool", "resumed"), [("curl", 206), ("wget", 206), ("curl", 200), ("curl", 416)]
)
def test_a_broken_download_goes_on_where_it_stopped_or_else_anew(web, tmp_path, tool, resumed):
    options, work = {"url": web.url, "PATH": only(tmp_path, "unzip", tool)}, tmp_path / "work"
    web.until, web.resumed = web.half, resumed
    result = get(work, **options)
    assert f"can't download {web.url}" in error_line(result)
    assert "run this again to resume" in error_line(result)
    assert result.returncode == 69  # after which run.sh goes on without the photos
    assert list(contents(work).values()) == [web.data[: web.half]]
    web.until, web.asked = None, []
    if resumed == 416:  # which says that all of it is there
        message = "is not a whole zip archive, or encrypted: run this again"
        assert message in error_line(get(work, **options))
        assert names(work) == set()
    result = get(work, **options)
    assert result.stdout.endswith(SHOWN), result.stderr
    assert web.asked == [web.half, *([] if resumed == 206 else [0])]
    assert names(work) == {"data"}


def test_what_was_downloaded_and_not_unpacked_is_not_downloaded_again(web, tmp_path):
    fails = '[ "$2" = -o ] && case $* in *" -d "*) exit 50 ;; esac'
    path, work = only(tmp_path, "unzip", "curl", unzip=fails), tmp_path / "work"
    assert "can't unpack into data.get_data." in error_line(get(work, url=web.url, PATH=path))
    assert [path.suffix for path in work.iterdir()] == [".part"]
    assert get(work, url=web.url).stdout == SHOWN
    assert web.asked == [0]
    assert names(work) == {"data"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_download_that_is_stopped_leaves_only_what_resumes_it(web, tmp_path, number):
    web.until = web.half
    web.goes_on.clear()
    script, environment = ["sh", PROJECT / "get_data.sh"], {**os.environ, "DATA_URL": web.url}
    started = subprocess.Popen(script, cwd=tmp_path, env=environment, start_new_session=True)
    wait_until(lambda: any(part.stat().st_size for part in tmp_path.glob("*.part")))
    assert len(names(tmp_path)) == 2  # with the folder to unpack into
    os.killpg(started.pid, number)
    assert started.wait(timeout=30) == 130
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]


def test_a_terminal_is_shown_the_progress_and_asked_nothing(archive, web, tmp_path):
    (encrypted := tmp_path / "encrypted.zip").write_bytes(encrypt(archive))
    doubled = shutil.copy(archive, tmp_path / "doubled.zip")
    with zipfile.ZipFile(doubled, "a") as file, pytest.warns(match="Duplicate"):
        file.writestr("hymenoptera_data/train/ants/imageNotFound.gif", b"GIF89a")
    # If it asks, it waits for ever.
    terminal = "import pty, signal, sys; signal.alarm(60); sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    script = (sys.executable, "-c", terminal, "sh", PROJECT / "get_data.sh")
    path = only(tmp_path, "unzip", "curl")
    for url, code, said in ((encrypted, 1, "encrypted"), (doubled, 0, ""), (web.url, 0, "100.0%")):
        (work := tmp_path / f"work{said}").mkdir()
        done = run(*script, cwd=work, DATA_URL=str(url), PATH=path)
        assert (done.returncode, said in done.stdout) == (code, True), done.stdout


def test_what_is_missing_is_one_clear_line(archive, web, tmp_path):
    photos = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
    gone, both = web.url.replace("photos", "nothing"), ("curl", "unzip")
    for message, code, url, tools in (
        (f"can't download {photos}: check the address and the connection", 69, "", both),
        (f"can't download {gone}", 69, gone, both),
        (f"can't download {gone}", 69, gone, ("wget", "unzip")),
        ("curl or wget is needed", 69, web.url, ("unzip",)),
        ("unzip is needed", 69, archive, ()),
        ("there is no file /no.zip: check DATA_URL", 1, "/no.zip", both),
        ("there is no file /no.zip: check DATA_URL", 1, "file:///no.zip", both),
    ):
        offline = {} if url else OFFLINE
        result = get(tmp_path / "work", url=url, PATH=only(tmp_path, *tools), **offline)
        assert message in error_line(result)
        assert result.returncode == code
        assert names(tmp_path / "work") == set()


def test_an_archive_that_is_not_the_photos_is_one_clear_line(archive, tmp_path):
    bad, linked = tmp_path / "bad.zip", Path(shutil.copy(archive, tmp_path / "linked.zip"))
    link = zipfile.ZipInfo("hymenoptera_data/train/ants/link.jpg")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(linked, "a") as file:
        file.writestr(link, "/etc/passwd")
    no_folders, no_photos = "no train/ and val/ folders", "no photos in its train/ or val/"
    for made, message in (
        (archive.read_bytes()[:5000], "is not a whole zip archive"),
        (encrypt(archive), "or encrypted"),
        (linked.read_bytes(), "has links in it"),
        (lambda name: name.replace("/", "_"), no_folders),
        (lambda name: "/train/" in name and name, no_folders),
        (lambda name: "/val/" in name and name, no_folders),
        (lambda name: name.replace(".jpg", ".txt" if "/train/" in name else ".jpg"), no_photos),
        (lambda name: name.replace(".jpg", ".txt" if "/val/" in name else ".jpg"), no_photos),
    ):
        bad.write_bytes(made) if isinstance(made, bytes) else rewrite(archive, bad, made)
        result = get(tmp_path / "work", url=bad)
        assert message in error_line(result)
        assert result.returncode == 1
        assert names(tmp_path / "work") == set()
        assert bad.exists()


def test_what_a_killed_run_left_is_cleared(archive, tmp_path):
    (ended := subprocess.Popen(["true"])).wait()
    others = {f"data.get_data.{os.getpid()}", "data.get_data.mine", "data.get_data.", "data.new.v2"}
    for name in {f"data.get_data.{ended.pid}", f"data.get_data.{ended.pid}.old", *others}:
        (tmp_path / name).mkdir()
    assert get(tmp_path, url=archive).returncode == 0
    assert names(tmp_path) == {"data", *others}


def test_what_is_not_the_photos_is_left_alone_even_if_it_appears_late(archive, web, tmp_path):
    appears = "mkdir data; echo mine >data/thesis.txt"
    path, work = only(tmp_path, "unzip", "curl", curl=appears), tmp_path / "work"
    message = "data has appeared meanwhile: nothing changed"
    assert message in error_line(get(work, url=web.url, PATH=path))
    assert not list(work.glob("*.get_data.*"))
    before = contents(work)
    message = "data exists, but has no photos in it: move it away"
    assert message in error_line(get(work, url=archive))
    assert "DATA_DIR=data-sample" in error_line(get(work, "--sample"))
    assert contents(work) == before
    assert before["data/thesis.txt"] == b"mine\n"


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_done(archive, web, tmp_path):
    (disk := tmp_path / "disk").mkdir()
    if run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk).returncode:
        pytest.skip("a small file system can't be mounted: that needs root")
    try:
        for tool, url, left in (("sh", archive, []), ("curl", web.url, [".part"])):
            result = get(disk, url=url, PATH=only(tmp_path, "unzip", tool))
            assert "is the disk full? Make room and run this again" in error_line(result)
            assert result.returncode == 1
            assert [path.suffix for path in disk.iterdir()] == left
    finally:
        run("umount", disk)


def test_own_photos_are_counted_and_stay_as_they_are(tmp_path):
    bees = tmp_path / "mein Ordner" / "Bienen"
    write_pictures(bees.parent, 3, ("Käfer", "Bienen"))
    (bees / "day 1" / "__MACOSX").mkdir(parents=True)
    (bees / ".hidden").mkdir()
    photos = [f"a{s}" for s in folders.SUFFIXES] + [f"day 1/B{s.upper()}" for s in folders.SUFFIXES]
    skipped = ["._b.jpg", ".hidden/b.jpg", "day 1/__MACOSX/b.jpg", "Thumbs.db", "desktop.ini"]
    for name in (*photos, *skipped, "c.raw", "jpg", "photo.jpg.txt", "../loose.jpg"):
        (bees / name).touch()
    before = contents(tmp_path)
    result = get(tmp_path, url="/nowhere", DATA_DIR="mein Ordner/")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "The photos are in mein Ordner/ already: nothing changed.\n"
        f"Bienen: {3 + len(photos)} photos, 3 other skipped\nKäfer: 3 photos\n\n"
        "Next: python train.py --data-dir 'mein Ordner'\n"
    )
    assert contents(tmp_path) == before


def test_another_folder_can_be_named_and_the_next_command_left_out(archive, tmp_path):
    result = get(tmp_path, url=archive, DATA_DIR="other/photos")
    assert result.stdout == SHOWN.replace("train.py", "train.py --data-dir other/photos")
    assert names(tmp_path / "other") == {"photos"}
    before = contents(tmp_path)
    again = get(tmp_path, url="/nowhere", DATA_DIR="other/photos", NO_NEXT="yes").stdout
    counts = SHOWN.partition("\n\n")[0]
    assert again == f"The photos are in other/photos/ already: nothing changed.\n{counts}\n"
    assert contents(tmp_path) == before


def test_a_sample_is_drawn_once_and_photos_replace_it_for_good(archive, tmp_path):
    result = get(tmp_path, "--sample")
    assert result.returncode == 0, result.stderr
    classes = ["data/train/ants", "data/train/bees", "data/val/ants", "data/val/bees"]
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("data/*/*/")) == classes
    said = "\nThese are drawn pictures, not photos.\n\nNext: python train.py --data-dir data"
    assert result.stdout.endswith(f"{said} --from-scratch\n")
    drawn = contents(tmp_path)
    already = "The drawn pictures are in data/ already: nothing changed.\n"
    assert get(tmp_path, "--sample").stdout == already + result.stdout
    assert contents(tmp_path) == drawn
    assert get(tmp_path, url=archive).stdout == SHOWN
    photos = contents(tmp_path)
    assert (len(photos), names(tmp_path)) == (18 + 1, {"data"})
    assert "DATA_DIR=data-sample" in error_line(get(tmp_path, "--sample"))
    assert contents(tmp_path) == photos


def test_arguments_are_explained_and_what_a_sample_needs(tmp_path):
    for option in ("--help", "-h"):
        result = get(tmp_path, option)
        assert result.returncode == 0
        assert result.stdout.startswith("Get the photos: 397 ants and bees")
        assert "\n  sh get_data.sh --sample    draw a few pictures instead" in result.stdout
        assert "set -eu" not in result.stdout
    unknown = "unknown argument --smaple: see sh get_data.sh --help"
    assert unknown in error_line(get(tmp_path, "--smaple"))
    assert names(tmp_path) == set()
    shutil.copy(PROJECT / "get_data.sh", tmp_path)  # where there is no simplestack
    result = run("sh", "get_data.sh", "--sample", cwd=tmp_path)
    assert "can't draw the pictures: that needs the packages" in error_line(result)
    assert names(tmp_path) == {"get_data.sh"}
