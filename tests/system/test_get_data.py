"""get_data.sh: the photos whole, or nothing and one clear line."""

import copy
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import OFFLINE, PROJECT, error_line, run, wait_until, write_script

SHOWN = (
    "train/ants: 6 photos\ntrain/bees: 6 photos\nval/ants: 3 photos\nval/bees: 3 photos\n"
    "\nNext: python train.py\n"
)
BASIC = "cat dirname env find grep ls mkdir mv rm sed sh wc"
BOTH = ("curl", "unzip")


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

    def log_message(self, *_): ...


@pytest.fixture
def web(archive):
    with ThreadPoolExecutor() as pool, ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        server.url = f"http://127.0.0.1:{server.server_port}/photos.zip"
        server.data, server.asked = archive.read_bytes(), []
        server.half, server.until, server.resumed = len(server.data) // 2, None, 206
        server.goes_on = threading.Event()
        server.goes_on.set()
        pool.submit(server.serve_forever, 0.01)
        yield server
        server.goes_on.set()
        server.shutdown()


def test_photos_come_from_any_kind_of_address_and_layout(archive, web, tmp_path):
    windows = rewrite(archive, tmp_path / "windows.zip", lambda name: name.replace("/", "\\"))
    bare = rewrite(archive, tmp_path / "bare.zip", lambda name: name.partition("/")[2])
    for i, url in enumerate((archive, f"file://{archive}", web.url, windows, bare)):
        result = get(work := tmp_path / str(i), url=url)
        downloading = f"Downloading {url}\n" if url == web.url else ""
        assert (result.returncode, result.stdout, result.stderr) == (0, downloading + SHOWN, "")
        assert (len(list(work.glob("data/*/*/*.jpg"))), names(work)) == (18, {"data"})


@pytest.mark.parametrize("resumed", [206, 200, 416])
def test_a_broken_download_is_resumed_or_else_starts_over(web, tmp_path, resumed):
    work = tmp_path / "work"
    web.until, web.resumed = web.half, resumed
    result = get(work, url=web.url)
    message = rf"can't download {web.url}.* run this again to resume"
    assert re.search(message, error_line(result))
    assert result.returncode == 69  # after which run.sh goes on without the photos
    assert list(contents(work).values()) == [web.data[: web.half]]
    web.until, web.asked = None, []
    if resumed == 416:  # which says that all of it is there
        assert "is not a whole zip archive" in error_line(get(work, url=web.url))
        assert names(work) == set()
    assert get(work, url=web.url).stdout.endswith(SHOWN)
    assert web.asked == [web.half, *([] if resumed == 206 else [0])]
    assert names(work) == {"data"}


@pytest.mark.parametrize("number", [int(signal.SIGINT), int(signal.SIGTERM)])
def test_a_download_that_is_stopped_leaves_only_what_resumes_it(web, tmp_path, number):
    web.until = web.half
    web.goes_on.clear()
    script, environment = ["sh", PROJECT / "get_data.sh"], {**os.environ, "DATA_URL": web.url}
    started = subprocess.Popen(script, cwd=tmp_path, env=environment, start_new_session=True)
    wait_until(lambda: any(part.stat().st_size for part in tmp_path.glob("*.part")))
    assert len(names(tmp_path)) == 2  # and the folder to unpack into
    os.killpg(started.pid, number)
    assert started.wait(timeout=30) == 130
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]


def test_a_terminal_is_shown_the_progress_and_asked_nothing(archive, web, tmp_path):
    doubled = shutil.copy(archive, tmp_path / "doubled.zip")
    with zipfile.ZipFile(doubled, "a") as file, pytest.warns(match="Duplicate"):
        file.writestr(file.namelist()[0], b"")
    web.data = doubled.read_bytes()
    # If it asks, it waits for ever.
    terminal = "import pty, signal, sys; signal.alarm(60); sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    script = (sys.executable, "-c", terminal, "sh", PROJECT / "get_data.sh")
    done = run(*script, cwd=tmp_path, DATA_URL=web.url)
    assert (done.returncode, "100.0%" in done.stdout) == (0, True), done.stdout


def test_no_photos_are_one_clear_line_and_leave_nothing(archive, web, tmp_path):
    photos = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
    gone = web.url.replace("photos", "nothing")
    climbing = rewrite(archive, tmp_path / "a", lambda x: x.replace("hymenoptera_data", "../.."))
    absolute = rewrite(archive, tmp_path / "b", lambda x: f"/{x}")
    no_train = rewrite(archive, tmp_path / "c", lambda x: "/val/" in x and x)
    no_val = rewrite(archive, tmp_path / "d", lambda x: "/train/" in x and x)
    web.data = archive.read_bytes()[:5000]
    (cut := tmp_path / "cut").write_bytes(web.data)
    bomb = shutil.copy(archive, tmp_path / "bomb")
    with zipfile.ZipFile(bomb, "a") as file:  # whose entries share their bytes
        file.filelist += [copy.copy(info) for info in file.filelist]
        file.writestr("a", "")
    for url, tools, code, message in (
        ("", BOTH, 69, f"can't download {photos}: check the address and the connection"),
        (gone, BOTH, 69, f"can't download {gone}"),
        (web.url, ["unzip"], 69, "curl is needed: install it"),
        (archive, [], 69, "unzip is needed: install it"),
        ("file:///no.zip", BOTH, 1, "there is no file /no.zip: check DATA_URL"),
        (cut, BOTH, 1, "is not a whole zip archive"),
        (web.url, BOTH, 1, "is not a whole zip archive"),
        (bomb, BOTH, 1, "is not a whole zip archive"),
        (climbing, BOTH, 1, "has paths that lead out of its folder"),
        (absolute, BOTH, 1, "has paths that lead out of its folder"),
        (no_train, BOTH, 1, "has no class folders"),
        (no_val, BOTH, 1, "has no class folders"),
    ):
        offline, path = {} if url else OFFLINE, tempfile.mkdtemp(dir=tmp_path)
        for tool in (*BASIC.split(), *tools):
            found = shutil.which(tool) or pytest.skip(f"{tool} is not installed: apt install it")
            Path(path, tool).symlink_to(found)
        result = get(work := tmp_path / "work", url=url, PATH=path, **offline)
        assert message in error_line(result)
        assert (result.returncode, names(work)) == (code, set())
        assert code == 69 or result.stderr.count("\n") == 1


def test_a_folder_of_other_files_is_left_alone_even_if_it_appears_late(archive, web, tmp_path):
    curl, work = tmp_path / "bin" / "curl", tmp_path / "work"
    write_script(curl, f'mkdir data; echo mine >data/thesis.txt; {shutil.which("curl")} "$@"')
    late = get(work, url=web.url, PATH=f"{curl.parent}:{os.environ['PATH']}")
    for result in (late, get(work, url=archive), get(work, "--sample")):
        assert "data exists: move it away, or choose another folder" in error_line(result)
        assert (work / "data" / "thesis.txt").read_text() == "mine\n"
        assert names(work) <= {"data", "data.zip.part"}


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_done(archive, web, tmp_path):
    (disk := tmp_path / "disk").mkdir()
    if run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk).returncode:
        pytest.skip("a small file system can't be mounted: that needs root")
    try:
        for url, left in ((archive, []), (web.url, [".part"])):
            result = get(disk, url=url)
            assert "is the disk full? Make room and run this again" in error_line(result)
            assert result.returncode == 1
            assert [path.suffix for path in disk.iterdir()] == left
    finally:
        run("umount", disk)


def test_another_folder_can_be_named_and_photos_in_it_stay_as_they_are(archive, tmp_path):
    named = {"DATA_DIR": "other/my photos/", "url": archive}
    then = "\nNext: python train.py --data-dir 'other/my photos'\n"
    assert get(tmp_path, **named).stdout == SHOWN.partition("\nNext")[0] + then
    shutil.rmtree(tmp_path / "other/my photos/val")  # own photos may be without
    before = contents(tmp_path)
    already = "The photos are in other/my photos/ already.\n"
    assert get(tmp_path, **named).stdout == already + then
    assert get(tmp_path, **named, NO_NEXT="yes").stdout == already
    assert contents(tmp_path) == before


def test_the_archive_may_have_class_folders_alone(archive, tmp_path):
    ants = {"hymenoptera_data/val/ants/00.jpg": "my own/ants'/a.jpg"}
    bees = {f"hymenoptera_data/val/bees/0{i}.jpg": f"my own/bees/{i}.jpg" for i in range(2)}
    mine = rewrite(archive, tmp_path / "mine.zip", {**ants, **bees}.get)
    with zipfile.ZipFile(mine, "a") as file:  # as macOS packs it
        file.writestr("__MACOSX/my own/._bees", b"")
    shown = "ants': 1 photo\nbees: 2 photos\n\nNext: python train.py --data-dir 'it'\\''s'\n"
    assert get(tmp_path, url=mine, DATA_DIR="it's").stdout == shown
    assert sorted(contents(tmp_path / "it's")) == ["ants'/a.jpg", "bees/0.jpg", "bees/1.jpg"]


def test_a_sample_is_drawn_once_and_photos_replace_it_for_good(archive, tmp_path):
    result = get(tmp_path, "--sample")
    assert len(list(tmp_path.glob("data/*/*/*.jpg"))) == 120
    said = "The pictures in data/ are drawn: they are not photos.\n\nNext: python train.py"
    said = f"{said} --data-dir 'data' --from-scratch\n"
    assert result.stdout.endswith(f"\n{said}"), result.stderr
    drawn = contents(tmp_path)
    assert get(tmp_path, "--sample").stdout == said
    assert contents(tmp_path) == drawn
    assert get(tmp_path, url=archive).stdout == SHOWN
    assert (len(contents(tmp_path)), names(tmp_path)) == (18, {"data"})


def test_help_bad_arguments_and_missing_packages_are_explained(tmp_path):
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


def test_corrections_are_added_whole_or_not_at_all_and_the_next_command_is_told(
    archive, pictures, tmp_path
):
    shutil.copytree(pictures, tmp_path / "it's")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for i, label in enumerate(("ants", "蜜蜂", "蜜蜂", "蜜蜂")):
            file.writestr(f"{label}/{i}.jpg", f"photo {i + 2}")
        file.writestr("corrections.csv", "file,answer")
    drawn = get(tmp_path, "--add", "a.zip", "it's")  # `make run` would replace them
    assert "it's has drawn pictures" in error_line(drawn)
    (tmp_path / "it's/SAMPLE.txt").unlink()
    before = contents(tmp_path)
    bad = get(tmp_path, "--add", archive, "it's")
    assert "isn't added: hymenoptera_data/train/ants/00.jpg is no plain photo" in error_line(bad)
    none = "error: name the archive: sh get_data.sh --add ZIP [FOLDER]\n"
    assert get(tmp_path, "--add").stderr == get(tmp_path, "--add", "no.zip").stderr == none
    assert contents(tmp_path) == before
    added = get(tmp_path, "--add", "a.zip", "it's")
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout.endswith("\n\nNext: DATA_DIR='it'\\''s' make run\n")
    new = sorted(name.rpartition("/")[0] for name in contents(tmp_path).keys() - before.keys())
    assert new == ["it's.held-out/ants", "it's/train/蜜蜂", "it's/train/蜜蜂", "it's/val/蜜蜂"]
    again = get(tmp_path, "--add", "a.zip", DATA_DIR="it's", NO_NEXT="yes")
    assert (again.returncode, "added" in again.stdout, "Next" in again.stdout) == (0, False, False)
