"""The static page, as publish.py writes it, in a real browser: it answers as the service does."""

import base64
import json
import os
import re
import shutil
import warnings
from pathlib import Path

import bentoml
import numpy as np
import pytest
from helpers import (
    PROJECT,
    check_fits_a_phone,
    code_block,
    encode,
    fresh_service,
    python,
    run,
    wait_until,
    watched_page,
)
from PIL import Image, ImageCms
from playwright.sync_api import expect
from serving.conftest import in_process

import publish
from bench import page as bench_page
from bench.page import CHROMIUM
from simplestack.packing import bentos, onnx_file
from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.serving.inference import OnnxModel

TOLD = "#status"
READ = """async (base64) => {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const { load, read } = await classifier;
  const pixels = await read(new File([bytes], ""), (await load()).rules);
  return btoa(Array.from(pixels, (value) => String.fromCharCode(value)).join(""));
}"""


@pytest.fixture(scope="module")
def bento(bento, model_file, tmp_path_factory):  # noqa: ARG001
    """The Bento around the same model with a temperature, which few photos don't get."""
    file = shutil.copy(model_file, tmp_path_factory.mktemp("tempered"))
    onnx_file.write_metadata(file, {**OnnxModel(file).metadata, "temperature": 0.2})
    with warnings.catch_warnings(action="ignore"), fresh_service():
        tempered = bentos.build_bento("tempered", file, {"checkpoint": "x"})
    bentoml.models.delete(tempered.info.all_models[0].tag)  # it has its own copy
    yield Path(tempered.path)
    bentoml.delete(tempered.tag)


@pytest.fixture(scope="module")
def public(bento, pictures, tmp_path_factory):
    """The folder that publish.py writes, and bench/page.py checks."""
    if not (shutil.which("npm") and CHROMIUM):
        pytest.skip("npm or Chromium is not installed: apt install npm chromium")
    folder = tmp_path_factory.mktemp("anywhere")
    written = python("publish.py", next(bento.glob("models/*/*/model.onnx")), cwd=folder)
    assert written.returncode == 0, written.stderr
    check = ("python", "-m", "bench.page", pictures / "val")
    checked = run(*check, cwd=folder, PYTHONPATH=str(PROJECT))
    assert checked.returncode == 0, checked.stderr
    same = "the same label for 6 of 6 photos that both can read (of 6), and unlike for 6"
    threads = min(4, os.cpu_count())
    for line, count in zip(checked.stdout.splitlines(), (1, threads), strict=True):
        assert line.startswith(f"page ({count} threads) and service: {same}")
    paths = folder.rglob("*")
    assert all(path.stat().st_size < 25_000_000 for path in paths)  # as hosts limit it
    return folder / "public"


@pytest.fixture(scope="module")
def page(browser, public):
    """The page with its network loaded; messages and requests to elsewhere fail the test."""
    with bench_page.served(public) as url, watched_page(browser, url) as page:
        page.goto(url)
        expect(page.locator(TOLD)).to_have_text("", timeout=30_000)
        yield page


def answer(page, data):
    return page.evaluate(bench_page.ASK, base64.b64encode(data).decode())


def read(page, data):
    pixels = base64.b64decode(page.evaluate(READ, base64.b64encode(data).decode()))
    return np.frombuffer(pixels, np.uint8).reshape(224, 224, 3)


def test_page_uploads_nothing_answers_without_a_network_and_fits_a_phone(page, photo):
    expect(page.get_by_role("heading", level=1)).to_have_text("Ants or bees?")
    expect(page.locator("#lead")).to_contain_text("nothing is uploaded")
    expect(page.locator("#links a")).to_have_count(3)
    for link in page.locator("#links a").all():
        assert page.request.get(link.evaluate("link => link.href")).ok
    page.get_by_role("button", name="Example 2").click()
    expect(page.locator(".card h2")).to_have_count(1, timeout=20_000)
    page.context.set_offline(True)
    page.locator("#maps").check()
    page.set_input_files("#file", photo)
    expect(page.locator(".card h2")).to_have_text([re.compile("^(ants|bees)$")] * 2, timeout=20_000)
    expect(page.locator(".card canvas").first).to_be_visible()
    page.get_by_role("button", name="Right").first.click()
    expect(page.locator("#count")).to_have_text("1 correction")
    check_fits_a_phone(page)
    page.context.set_offline(False)


UPDATED = """async () => {
  const kept = await navigator.serviceWorker.ready;
  const states = new Promise((done) => {
    kept.onupdatefound = () => (kept.installing.onstatechange = ({ target }) => done(target.state));
  });
  await kept.update();
  return states;
}"""
NEWER = "A newer version is here: close all tabs of this page, and the next visit gets it."


def asked(page, url, photo):
    """Open the page, and ask about a photo; return its title and the label."""
    page.goto(url)
    page.set_input_files("#file", photo)
    expect(page.locator(".card h2")).to_have_count(1, timeout=30_000)
    return page.title(), page.locator(".card h2").inner_text()


def test_a_version_is_kept_for_visits_without_a_network_until_the_next_one_is_whole(
    browser, public, photo, tmp_path
):
    folder, newer = shutil.copytree(public, tmp_path / "site"), tmp_path / "newer.onnx"
    shutil.copyfile(public / "model.onnx", newer)
    metadata = OnnxModel(newer).metadata
    onnx_file.write_metadata(newer, {**metadata, "classes": ["fourmis", "abeilles"]})
    with browser.new_context() as context:
        first, other = context.new_page(), context.new_page()
        with bench_page.served(folder, isolated=True) as url:
            title, label = asked(first, url, photo)
            assert title == "Ants or bees?"
            expect(first.locator("#news")).to_have_text(
                "This page opens without a network from now on.", timeout=30_000
            )
            session = context.new_cdp_session(first)
            assert session.send("Page.getAppManifest")["errors"] == []
            errors = session.send("Page.getInstallabilityErrors")["installabilityErrors"]
            assert [error["errorId"] for error in errors] == ["in-incognito"]  # as tests open it

            first.reload()  # this visit is the first one that began with the version
            publish.write(folder, OnnxModel(newer))
            whole = (folder / "model.onnx").read_bytes()
            (folder / "model.onnx").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            assert asked(other, url, photo) == (title, label)
            assert other.evaluate(UPDATED) == "redundant"
            expect(other.locator("#news")).to_be_empty()
            (folder / "model.onnx").write_bytes(whole)
            os.utime(folder / "model.onnx", (0, 0))  # another time than the damaged one's
            assert asked(other, f"{url}index.html?again", photo) == (title, label)
            expect(other.locator("#news")).to_have_text(NEWER, timeout=30_000)
            other.goto(f"{url}..")  # outside of the page, which leaves the first one open
            waiting = "navigator.serviceWorker.getRegistration('/site/').then((x) => !!x.waiting)"
            assert other.evaluate(waiting)
            first.close()
            wait_until(lambda: not other.evaluate(waiting))
        # the server is gone
        title, second_label = asked(other, url, photo)
        assert title == "Fourmis or abeilles?"
        assert second_label == {"ants": "fourmis", "bees": "abeilles"}[label]
        assert other.evaluate(bench_page.LOAD) == min(4, os.cpu_count())
        assert other.evaluate("caches.keys().then((keys) => keys.length)") == 1


def test_similarity_map_and_order_of_an_answer_are_those_of_the_service(page, bento, pictures):
    photos = [path.read_bytes() for path in pictures.glob("val/*/*.jpg")]
    with in_process(bento) as service:
        answers = [service.post("/predict?explain=1", content=photo).json() for photo in photos]
    for photo, expected in zip(photos, answers, strict=True):
        said = answer(page, photo)  # bench/page.py has compared label, unlike and probabilities
        assert said["similarity"] == pytest.approx(expected["similarity"], abs=0.02)
        np.testing.assert_allclose(said["map"], expected["map"], atol=0.1)
        assert [*said][:5] == [*expected][:5]


WAYS_TO_STOP = {
    "button": lambda page: page.get_by_role("button", name="Stop the camera").click(),
    "button of the card": lambda page: page.get_by_role("button", name="Stop", exact=True).click(),
    "Escape": lambda page: page.keyboard.press("Escape"),
    "another tab": lambda page: page.evaluate(
        """Object.defineProperty(document, "hidden", { value: true });
        document.dispatchEvent(new Event("visibilitychange"))"""
    ),
    "unplugged": lambda page: page.evaluate("track.stop()"),
}


def test_camera_answers_until_it_is_stopped_in_any_way(browser, page):
    with browser.new_context(permissions=["camera"]) as context:
        live = context.new_page()
        live.goto(page.url)
        shown = live.locator(".card h2")
        for way, stop in WAYS_TO_STOP.items():
            live.get_by_role("button", name="Live camera").click()
            expect(shown).to_have_text(re.compile("^(ants|bees)$"), timeout=30_000)
            live.evaluate("track = document.querySelector('video').srcObject.getTracks()[0]")
            live.evaluate("heading = document.querySelector('.card h2')")
            expect(live.locator(TOLD)).to_have_text(shown.inner_text())
            wait_until(lambda: not live.evaluate("heading.isConnected"))  # the next answer
            expect(live.locator(".card dd")).to_have_count(2)
            stop(live)
            expect(live.get_by_role("button", name="Live camera")).to_be_visible()
            expect(live.locator(".card")).to_have_count(0)
            expect(live.locator(TOLD)).to_have_text("The camera is off.")
            assert (way, live.evaluate("track.readyState")) == (way, "ended")


def test_camera_s_answers_are_an_exponential_moving_average(page):
    mean = page.evaluate(
        """average({ probabilities: { ants: 1, bees: 0 }, similarity: 0.5 },
        { probabilities: { ants: 0, bees: 1 }, similarity: 0.7 })"""
    )
    assert mean["probabilities"] == pytest.approx({"ants": 0.7, "bees": 0.3})
    assert mean["similarity"] == pytest.approx(0.56)


def test_camera_that_cannot_be_used_is_one_sentence(browser, page):
    with browser.new_page() as live:
        live.goto(page.url)
        use = live.get_by_role("button", name="Live camera")
        use.click()
        expect(live.locator(TOLD)).to_have_text(
            "The browser doesn't let this page use the camera: allow it in the settings"
            " beside the page's address.",
            timeout=30_000,
        )
        live.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
        use.click()
        expect(live.locator(TOLD)).to_have_text("Only pages with https can use the camera.")
        expect(use).to_be_visible()


def drawing(width=500, height=333, mode="RGB"):
    """Return a picture in which each pixel tells where it is, with noise over it."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    noise = np.random.default_rng(0).integers(0, 55, (height, width, 3))
    pixels = np.stack([x, y, 200 - x], axis=2) + noise
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


SIZES = [(1, 1), (40, 30), (200, 230), (300, 376), (300, 377), (333, 500), (300, 3000), (9000, 30)]
SIZES += [(1, 9000), (1700, 1100), (2600, 1900)]


def pictures_of_all_kinds():
    """Yield the kind of each picture, and its file."""
    usual = drawing()
    for kind in ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP"):
        yield kind, encode(usual, kind)
    yield "progressive", encode(usual, "JPEG", progressive=True)
    colours = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = re.sub(b"[rb](?=XYZ)", lambda x: {b"r": b"b", b"b": b"r"}[x[0]], colours)
    yield "a profile that isn't applied", encode(usual, "JPEG", icc_profile=swapped)
    exif = Image.Exif()
    for exif[images.ORIENTATION] in (6, 7):
        yield exif, encode(usual, "JPEG", exif=exif)
    yield "grey", encode(drawing(mode="L"), "JPEG")
    yield "bytes after it", encode(usual, "JPEG") + b"\xff\xda" * 9
    yield "palette", encode(drawing(mode="P"), "PNG")
    transparent = drawing(mode="RGBA")
    transparent.putalpha(drawing(mode="L"))
    yield "transparent", encode(transparent, "PNG")
    for size in SIZES:
        yield size, encode(drawing(*size), "PNG", compress_level=1)


def test_pixels_are_those_of_the_service_and_of_a_large_jpeg_nearly_so(page):
    for name, data in pictures_of_all_kinds():
        np.testing.assert_array_equal(read(page, data), images.read(data), err_msg=str(name))
    data = encode(drawing(4032, 3024), "JPEG")  # Python's decoder reduces it before the resizing
    difference = np.abs(read(page, data) - images.read(data).astype(int))
    assert difference.mean() < 0.5
    assert difference.max() < 8


CANT_READ = "This browser can't read the file as an image: use a JPEG, PNG, WebP, GIF or BMP file."


def test_bad_input_gets_a_sentence(page):
    whole = [encode(drawing(), kind) for kind in ("JPEG", "PNG", "GIF", "BMP")]
    small = b"Exif\0\0" + encode(drawing(64, 64), "JPEG")  # before the pixels of the large one
    segment = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    with_small = whole[0][:2] + segment + whole[0][2:-9000]
    large = encode(Image.new("1", (10_000, 10_000)), "PNG")
    for data in (*(data[:9000] for data in whole), with_small, large):
        with pytest.raises(StackError) as refused:
            images.read(data)
        assert (data[:9], answer(page, data)["error"]) == (data[:9], str(refused.value))
    drawn = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    portable = (encode(drawing(), kind) for kind in ("TIFF", "HEIF", "PPM"))
    for data in (b"", b"%PDF-1.7\n\0", drawn, *portable):
        error = answer(page, data)["error"]
        assert (data[:9], error) == (data[:9], CANT_READ)


def test_a_file_that_is_damaged_is_not_run_and_one_that_is_missing_is_tried_again(
    browser, public, photo, tmp_path
):
    tampered = shutil.copytree(public, tmp_path / "site")
    with bench_page.served(tampered) as url:
        for name in ("model.onnx", "onnxruntime.wasm"):
            whole = (tampered / name).read_bytes()
            changed = bytearray(whole)
            changed[len(whole) // 2] ^= 1
            (tampered / name).write_bytes(changed)
            said = f"The file {name} can't be loaded, or isn't the one that belongs to this page:"
            said += " check the connection, and load the page again."
            with browser.new_page() as page:  # in a context of its own, without a cache
                page.goto(url)
                expect(page.locator(TOLD)).to_have_text(said, timeout=30_000)
            (tampered / name).write_bytes(whole)
        (tampered / "rules.json").rename(tampered / "moved")
        with browser.new_page() as page:
            page.goto(url)
            expect(page.locator(TOLD)).to_contain_text("The file rules.json can't be loaded:")
            (tampered / "moved").rename(tampered / "rules.json")
            page.set_input_files("#file", photo)
            expect(page.locator(".card h2")).to_have_count(1, timeout=30_000)


def test_a_browser_without_webassembly_or_simd_is_told_so(browser, page):
    said = "This browser has no WebAssembly with SIMD, which the network needs: use a newer one."
    arguments = ["--no-sandbox", "--disable-gpu", "--js-flags=--no-enable-sse4-1"]
    older = browser.browser_type.launch(executable_path=CHROMIUM, args=arguments)
    pages = (older.new_page(), browser.new_page())
    pages[1].add_init_script("delete globalThis.WebAssembly")
    for opened in pages:
        opened.goto(page.url)
        expect(opened.locator(TOLD)).to_have_text(said)
        opened.close()
    older.close()


def test_javascript_of_the_documentation_answers_as_the_page(browser, public, page, photo):
    (public / "mine.html").write_text(code_block("html", "classify"))
    with browser.new_page() as mine:
        mine.goto(f"{page.url}mine.html")
        mine.set_input_files("#file", photo)
        expect(mine.locator("#answer")).to_contain_text("label", timeout=30_000)
        said = json.loads(mine.locator("#answer").inner_text())
    assert said["probabilities"] == answer(page, photo.read_bytes())["probabilities"]
