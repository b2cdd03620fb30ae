"""The static page, as publish.py writes it, in a real browser: it answers as the service does."""

import base64
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import code_block, encode, python, watched_page
from PIL import Image, ImageCms
from playwright.sync_api import Page, expect
from serving.conftest import in_process
from starlette.testclient import TestClient

from simplestack.packing import page_check
from simplestack.packing.page_check import CHROMIUM
from simplestack.serving import images
from simplestack.serving.errors import StackError

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields'")  # by BentoML

TOLD = "#status"
READ = """async (base64) => {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const { load, read } = await classifier;
  const pixels = await read(new File([bytes], ""), (await load()).rules);
  return btoa(Array.from(pixels, (value) => String.fromCharCode(value)).join(""));
}"""


@pytest.fixture(scope="module")
def published(bento, pictures, tmp_path_factory) -> tuple[Path, str]:
    """The folder that publish.py writes and checks, and what it prints."""
    if not (shutil.which("npm") and CHROMIUM):
        pytest.skip("npm or Chromium is not installed: apt install npm chromium")
    folder = tmp_path_factory.mktemp("anywhere")
    arguments = (f"{bento.parent.name}:latest", "--check", pictures / "val")
    result = python("publish.py", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "public", result.stdout


@pytest.fixture(scope="module")
def public(published) -> Path:
    return published[0]


@pytest.fixture(scope="module")
def service(bento) -> Iterator[TestClient]:
    with in_process(bento) as client:
        yield client


@pytest.fixture(scope="module")
def page_url(public) -> Iterator[str]:
    with page_check.served(public) as url:
        yield url


@pytest.fixture
def page(browser, page_url) -> Iterator[Page]:
    """The page with its network loaded; whatever it logs or loads from elsewhere fails the test."""
    with watched_page(browser, page_url) as page:
        page.goto(page_url)
        expect(page.locator(TOLD)).to_have_text("", timeout=30_000)
        yield page


@pytest.fixture(scope="module")
def loaded(browser, page_url) -> Iterator[Page]:
    """The page, for tests that only ask its network."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(page_url)
        yield page


def answer(page: Page, data: bytes) -> dict:
    return page.evaluate(page_check.ASK, base64.b64encode(data).decode())


def read(page: Page, data: bytes) -> np.ndarray:
    """Return a picture as the page's network gets it, 224×224×3 uint8."""
    pixels = base64.b64decode(page.evaluate(READ, base64.b64encode(data).decode()))
    return np.frombuffer(pixels, np.uint8).reshape(224, 224, 3)


def test_script_writes_the_page_and_checks_it(published):
    public, said = published
    same = "the same label for 6 of 6 photos that both can read (of 6), and unlike for 6"
    assert same in said
    assert "hf upload USER/SPACE public . --type space" in said
    assert all(path.stat().st_size < 25_000_000 for path in public.rglob("*"))  # as hosts limit it


def test_page_says_that_nothing_is_uploaded(page):
    expect(page.get_by_role("heading", level=1)).to_have_text("Ants or bees?")
    expect(page.locator("#lead")).to_contain_text("nothing is uploaded")
    expect(page.locator("#links a")).to_have_count(3)
    for link in page.locator("#links a").all():
        assert page.request.get(link.evaluate("link => link.href")).ok


def test_page_answers_without_a_network_and_fits_a_phone(page, photo):
    page.context.set_offline(True)
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#maps").check()
    page.set_input_files("#file", photo)
    expect(page.locator(".card h2")).to_have_text(re.compile("^(ants|bees)$"), timeout=20_000)
    expect(page.locator(".card canvas")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_example_photo_gets_an_answer_at_one_click(page):
    page.get_by_role("button", name="Example 2").click()
    expect(page.locator(".card h2")).to_have_count(1, timeout=20_000)


def test_page_answers_as_the_service_does(loaded, service, pictures):
    for photo in sorted(pictures.glob("val/*/*.jpg")):
        said = answer(loaded, photo.read_bytes())
        expected = service.post(
            "/predict", content=photo.read_bytes(), params={"explain": 1}
        ).json()
        assert said["label"] == expected["label"]
        assert said["unlike"] == expected["unlike"]
        assert said["probabilities"] == pytest.approx(expected["probabilities"], abs=0.02)
        assert said["similarity"] == pytest.approx(expected["similarity"], abs=0.02)
        np.testing.assert_allclose(said["map"], expected["map"], atol=0.1)
        assert [*said][:5] == [*expected][:5]


def drawing(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return a picture in which each pixel tells where it is, with noise over it."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    noise = np.random.default_rng(0).integers(0, 55, (height, width, 3))
    pixels = np.stack([x, y, 200 - x], axis=2) + noise
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def turned(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[images.ORIENTATION] = number
    return exif


def transparent() -> Image.Image:
    image = drawing(*USUAL, "RGBA")
    image.putalpha(drawing(*USUAL, "L"))
    return image


def swapped_colours() -> bytes:
    """Return a profile that a browser must not apply, as Pillow doesn't."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")


USUAL = (500, 333)
SIZES = [(1, 1), (40, 30), (200, 230), (300, 376), (300, 377), (333, 500), (300, 3000), (9000, 30)]
SIZES += [(1, 9000), (1700, 1100), (2600, 1900)]
PICTURES = {
    "JPEG": lambda: encode(drawing(*USUAL), "JPEG"),
    "progressive JPEG": lambda: encode(drawing(*USUAL), "JPEG", progressive=True),
    "grey JPEG": lambda: encode(drawing(*USUAL, "L"), "JPEG"),
    "JPEG with a profile": lambda: encode(drawing(*USUAL), "JPEG", icc_profile=swapped_colours()),
    "JPEG with bytes after it": lambda: encode(drawing(*USUAL), "JPEG") + b"\xff\xda" * 9,
    "JPEG on its side": lambda: encode(drawing(*USUAL), "JPEG", exif=turned(6)),
    "mirrored JPEG": lambda: encode(drawing(*USUAL), "JPEG", exif=turned(7)),
    "PNG": lambda: encode(drawing(*USUAL), "PNG"),
    "transparent PNG": lambda: encode(transparent(), "PNG"),
    "palette PNG": lambda: encode(drawing(*USUAL, "P"), "PNG"),
    "WebP": lambda: encode(drawing(*USUAL), "WEBP"),
    "AVIF": lambda: encode(drawing(*USUAL), "AVIF"),
    "GIF": lambda: encode(drawing(*USUAL), "GIF"),
    "BMP": lambda: encode(drawing(*USUAL), "BMP"),
    **{
        f"{w}×{h}": lambda w=w, h=h: encode(drawing(w, h), "PNG", compress_level=1)
        for w, h in SIZES
    },
}


def test_pixels_are_those_of_the_service(loaded):
    for name, draw in PICTURES.items():
        data = draw()
        np.testing.assert_array_equal(read(loaded, data), images.read(data), err_msg=name)


def test_a_large_jpeg_is_nearly_the_same(loaded):
    """Python's decoder reduces it, before its pixels are averaged."""
    data = encode(drawing(4032, 3024), "JPEG")
    difference = np.abs(read(loaded, data) - images.read(data).astype(int))
    assert difference.mean() < 0.5
    assert difference.max() < 8


# What can't be answered


HALF = {
    kind: lambda kind=kind: encode(drawing(*USUAL), kind)[:9000]
    for kind in ("JPEG", "PNG", "GIF", "BMP")
}
BAD = {
    **{f"half a {kind}": data for kind, data in HALF.items()},
    "half a JPEG with a thumbnail": lambda: with_thumbnail()[:-9000],
    "header of a PNG": lambda: encode(drawing(*USUAL), "PNG")[:40],
    "header of a JPEG": lambda: encode(drawing(*USUAL), "JPEG")[:100],
    "empty": lambda: b"",
    "PDF": lambda: b"%PDF-1.7\n\0",
    "SVG": lambda: b'<?xml version="1.0"?><!-- <p> --><svg xmlns="http://www.w3.org/2000/svg"/>',
    "XML with many comments": lambda: b"<!-- <p> -->\n" * 2000 + b"<root/>",
    "gzip": lambda: gzip.compress(bytes(1000)),
    "video": lambda: b"\0\0\0\x20ftypisom",
    "junk": lambda: bytes(range(256)),
    "100 megapixels": lambda: encode(Image.new("1", (10_000, 10_000)), "PNG"),
}


def with_thumbnail() -> bytes:
    """Return a JPEG with a whole small one in a segment before its own pixels."""
    small = b"Exif\0\0" + encode(drawing(64, 64), "JPEG")
    data = encode(drawing(*USUAL), "JPEG")
    return data[:2] + b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small + data[2:]


def test_bad_input_gets_the_sentence_of_the_service(loaded):
    for name, write in BAD.items():
        data = write()
        with pytest.raises(StackError) as refused:
            images.read(data)
        assert (name, answer(loaded, data)["error"]) == (name, str(refused.value))


def test_a_format_that_browsers_cannot_read_is_named(loaded):
    said = answer(loaded, encode(drawing(300, 300), "TIFF"))
    assert said["error"].startswith("This TIFF file can't be read")
    assert said["error"].endswith("Save it anew, as a JPEG or PNG.")


@pytest.fixture
def tampered(public, tmp_path) -> Path:
    return shutil.copytree(public, tmp_path / "site")


def test_a_file_that_does_not_match_its_hash_is_not_run(browser, tampered):
    with page_check.served(tampered) as url:
        for name in ("model.onnx", "onnxruntime.wasm"):
            whole = (tampered / name).read_bytes()
            data = bytearray(whole)
            data[len(data) // 2] ^= 1
            (tampered / name).write_bytes(data)
            with browser.new_context() as context:
                page = context.new_page()
                page.goto(url)
                expect(page.locator(TOLD)).to_have_text(
                    f"The file {name} can't be loaded, or isn't the one that belongs to this page:"
                    " check the connection, and load the page again.",
                    timeout=30_000,
                )
            (tampered / name).write_bytes(whole)


def test_a_missing_file_is_named_and_a_later_photo_tries_again(browser, tampered, photo):
    with page_check.served(tampered) as url, browser.new_context() as context:
        page = context.new_page()
        (tampered / "rules.json").rename(tampered / "moved")
        page.goto(url)
        expect(page.locator(TOLD)).to_contain_text("The file rules.json can't be loaded:")
        (tampered / "moved").rename(tampered / "rules.json")
        page.set_input_files("#file", photo)
        expect(page.locator(".card h2")).to_have_count(1, timeout=30_000)


NO_SIMD = "This browser has no WebAssembly with SIMD, which the network needs: use a newer one."


def test_a_browser_without_simd_is_told_so(browser, page_url):
    arguments = ["--no-sandbox", "--disable-gpu", "--js-flags=--no-enable-sse4-1"]
    older = browser.browser_type.launch(executable_path=CHROMIUM, args=arguments)
    page = older.new_page()
    page.goto(page_url)
    expect(page.locator(TOLD)).to_have_text(NO_SIMD)
    older.close()


def test_a_browser_without_webassembly_is_told_so(browser, page_url):
    with browser.new_context() as context:
        page = context.new_page()
        page.add_init_script("delete globalThis.WebAssembly")
        page.goto(page_url)
        expect(page.locator(TOLD)).to_have_text(NO_SIMD)


def test_javascript_of_the_documentation_answers_as_the_service(browser, tampered, service, photo):
    (tampered / "mine.html").write_text(code_block("html", "classify"))
    with page_check.served(tampered) as url, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{url}mine.html")
        page.set_input_files("#file", photo)
        expect(page.locator("#answer")).to_contain_text("label", timeout=30_000)
        said = json.loads(page.locator("#answer").inner_text())
    expected = service.post("/predict", content=photo.read_bytes()).json()
    assert said["probabilities"] == pytest.approx(expected["probabilities"], abs=0.02)
