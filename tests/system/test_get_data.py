"""get_data.sh: the photos whole, or nothing and one clear line."""

import os
import re
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
    archive = tmp_path_factory.mktemp("archive") / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(pictures.rglob("*.jpg")):
            file.write(path, Path("hymenoptera_data", path.relative_to(pictures)))
        file.writestr("hymenoptera_data/train/ants/imageNotFound.gif", b"GIF89a")
    return archive


def rewrite(archive, new, rename):
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(new, "w") as file:
        for name in filter(rename, old.namelist()):
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = rename(name), 0
            file.writestr(info, old.read(name))
    return new


class Web(BaseHTTPRequestHandler):
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
        result = get(work := tmp_path / str(i), url=url)
        downloading = f"Downloading {url}\n" if url == web.url else ""
        assert (result.returncode, result.stdout, result.stderr) == (0, downloading + SHOWN, "")
        assert (len(list(work.glob("data/*/*/*.jpg"))), names(work)) == (18, {"data"})


@pytest.mark.parametrize(
    ("tool", "resumed"), [("curl", 206), ("wget", 206), ("curl", 200), ("curl", 416)]
)
def test_a_broken_download_goes_on_where_it_stopped_or_else_anew(web, tmp_path, tool, resumed):
    options, work = {"url": web.url, "PATH": only(tmp_path, "unzip", tool)}, tmp_path / "work"
    web.until, web.resumed = web.half, resumed
    result = get(work, **options)
    message = rf"can't download {web.url}.* run this again to resume"
    assert re.search(message, error_line(result))
    assert result.returncode == 69  # after which run.sh goes on without the photos
    assert list(contents(work).values()) == [web.data[: web.half]]
    web.until, web.asked = None, []
    if resumed == 416:  # which says that all of it is there
        assert "is not a whole zip archive" in error_line(get(work, **options))
        assert names(work) == set()
    assert get(work, **options).stdout.endswith(SHOWN)
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


@pytest.mark.parametrize("number", [int(signal.SIGINT), int(signal.SIGTERM)])
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
    content = archive.read_bytes().replace(b"PK\3\4\x14\0\0", b"PK\3\4\x14\0\1", 1)
    content = content.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1", 1)
    (encrypted := tmp_path / "encrypted.zip").write_bytes(content)
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


def test_what_is_missing_or_not_the_photos_is_one_clear_line(archive, web, tmp_path):
    photos = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
    gone, both = web.url.replace("photos", "nothing"), ("curl", "unzip")
    (cut := tmp_path / "cut.zip").write_bytes(archive.read_bytes()[:5000])
    linked, link = shutil.copy(archive, tmp_path / "linked.zip"), zipfile.ZipInfo("a/link.jpg")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(linked, "a") as file:
        file.writestr(link, "/etc/passwd")
    for message, code, url, tools in (
        (f"can't download {photos}: check the address and the connection", 69, "", both),
        (f"can't download {gone}", 69, gone, both),
        ("curl or wget is needed", 69, web.url, ("unzip",)),
        ("unzip is needed", 69, archive, ()),
        ("there is no file /no.zip: check DATA_URL", 1, "file:///no.zip", both),
        ("is not a whole zip archive", 1, cut, both),
        ("has links in it", 1, linked, both),
    ):
        offline = {} if url else OFFLINE
        result = get(tmp_path / "work", url=url, PATH=only(tmp_path, *tools), **offline)
        assert message in error_line(result)
        assert (result.returncode, names(tmp_path / "work")) == (code, set())
    assert cut.exists()
    for part in ("/train/", "/val/"):
        for message, rename in (
            ("no train/ and val/ folders", lambda name, p=part: p in name and name),
            ("no photos in its", lambda n, p=part: n.replace(".jpg", ".txt" if p in n else ".jpg")),
        ):
            result = get(tmp_path / "work", url=rewrite(archive, tmp_path / "made.zip", rename))
            assert message in error_line(result)
            assert (result.returncode, names(tmp_path / "work")) == (1, set())


def test_what_is_not_the_photos_is_left_alone_even_if_it_appears_late(archive, web, tmp_path):
    appears = "mkdir data; echo mine >data/thesis.txt"
    path, work = only(tmp_path, "unzip", "curl", curl=appears), tmp_path / "work"
    late = error_line(get(work, url=web.url, PATH=path))
    assert "data has appeared meanwhile: nothing changed" in late
    assert not list(work.glob("*.get_data.*"))
    before = contents(work)
    assert before["data/thesis.txt"] == b"mine\n"
    message = "data exists, but has no photos in it: move it away"
    assert message in error_line(get(work, url=archive))
    assert "DATA_DIR=data-sample" in error_line(get(work, "--sample"))
    assert contents(work) == before


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
    write_pictures(tmp_path / "mein Ordner", 3, ("Käfer", "Bienen"))
    (tmp_path / "mein Ordner" / "Bienen" / "__MACOSX").mkdir()
    photos = [f"a{s}" for s in folders.SUFFIXES] + [f"B{s.upper()}" for s in folders.SUFFIXES]
    for name in (*photos, "._b.jpg", "__MACOSX/b.jpg", "Thumbs.db", "jpg", "photo.jpg.txt"):
        (tmp_path / "mein Ordner" / "Bienen" / name).touch()
    before = contents(tmp_path)
    assert get(tmp_path, url="/nowhere", DATA_DIR="mein Ordner/").stdout == (
        "The photos are in mein Ordner/ already: nothing changed.\n"
        f"Bienen: {3 + len(photos)} photos, 2 other skipped\nKäfer: 3 photos\n\n"
        "Next: python train.py --data-dir 'mein Ordner'\n"
    )
    assert contents(tmp_path) == before


def test_another_folder_can_be_named_where_what_killed_runs_left_is_cleared(archive, tmp_path):
    (ended := subprocess.Popen(["true"])).wait()
    for left in (f"{ended.pid}", f"{ended.pid}.old", f"{os.getpid()}", "mine"):
        (tmp_path / "other" / f"photos.get_data.{left}").mkdir(parents=True)
    shown = get(tmp_path, url=archive, DATA_DIR="other/photos").stdout
    assert shown == SHOWN.replace("train.py", "train.py --data-dir other/photos")
    kept = {f"photos.get_data.{os.getpid()}", "photos.get_data.mine"}
    assert names(tmp_path / "other") == {"photos", *kept}
    again = get(tmp_path, url="/nowhere", DATA_DIR="other/photos", NO_NEXT="yes").stdout
    counts = SHOWN.partition("\n\n")[0]
    assert again == f"The photos are in other/photos/ already: nothing changed.\n{counts}\n"


def test_a_sample_is_drawn_once_and_photos_replace_it_for_good(archive, tmp_path):
    result = get(tmp_path, "--sample")
    classes = ["data/train/ants", "data/train/bees", "data/val/ants", "data/val/bees"]
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("data/*/*/")) == classes
    said = "\nThese are drawn pictures, not photos.\n\nNext: python train.py --data-dir data"
    assert result.stdout.endswith(f"{said} --from-scratch\n"), result.stderr
    drawn = contents(tmp_path)
    already = "The drawn pictures are in data/ already: nothing changed.\n"
    assert get(tmp_path, "--sample").stdout == already + result.stdout
    assert contents(tmp_path) == drawn
    assert get(tmp_path, url=archive).stdout == SHOWN
    assert (len(contents(tmp_path)), names(tmp_path)) == (18 + 1, {"data"})


def test_arguments_are_explained_and_what_a_sample_needs(tmp_path):
    shutil.copy(PROJECT / "get_data.sh", tmp_path)  # where there is no simplestack
    result = run("sh", "get_data.sh", "--help", cwd=tmp_path)
    assert result.stdout.startswith("Get the photos: 397 ants and bees")
    assert "\n  sh get_data.sh --sample    draw a few pictures instead" in result.stdout
    assert "set -eu" not in result.stdout
    for argument, message in (
        ("--smaple", "unknown argument --smaple: see sh get_data.sh --help"),
        ("--sample", "can't draw the pictures: that needs the packages"),
    ):
        assert message in error_line(run("sh", "get_data.sh", argument, cwd=tmp_path))
        assert names(tmp_path) == {"get_data.sh"}
