"""publish.py: the page without a server, in a real browser, answers as the service does."""

import base64
import gzip
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from helpers import PROJECT, copy_project, encode, error_line, post, python, run, watched_page
from PIL import Image, ImageCms
from playwright.sync_api import Page, expect

from simplestack.packing import page_check
from simplestack.packing.page_check import CHROMIUM
from simplestack.serving import images
from simplestack.serving.errors import StackError

pytestmark = pytest.mark.usefixtures("bento")

TOLD = "#status"
READ = """async (base64) => {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const { load, read } = await classifier;
  const pixels = await read(new File([bytes], ""), (await load()).rules);
  return Array.from(pixels);
}"""


@pytest.fixture(scope="module")
def public(bento, tmp_path_factory) -> Path:
    """The folder that publish.py writes, twice: the second time over the first."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("anywhere")
    for _ in range(2):
        result = python("publish.py", f"{bento.parent.name}:latest", cwd=folder)
        assert result.returncode == 0, result.stderr
        assert "hf upload USER/SPACE public . --type space" in result.stdout
        (folder / "public/examples/old.jpg").touch(exist_ok=True)
    (folder / "public/examples/old.jpg").unlink()
    return folder / "public"


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


# The folder


def test_folder_has_what_a_static_host_needs(public, bento):
    assert sorted(path.name for path in public.iterdir()) == [
        ".nojekyll",
        "README.md",
        "browser.js",
        "classifier.js",
        "examples",
        "index.html",
        "labels.txt",
        "model.json",
        "model.onnx",
        "onnxruntime.js",
        "onnxruntime.wasm",
        "rules.json",
    ]
    assert (public / "labels.txt").read_text() == "ants\nbees\n"
    assert public.stat().st_mode & 0o777 == 0o755
    for path in public.rglob("*"):
        assert path.stat().st_size < 25_000_000
    packed = next(bento.glob("models/*/*/model.onnx"))
    assert (public / "model.onnx").read_bytes() == packed.read_bytes()


def test_readme_has_the_header_of_a_static_space(public):
    header = yaml.safe_load((public / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "static"
    assert header["title"] == "Ants or bees?"


def test_folder_names_no_other_host(public):
    for name in ("index.html", "browser.js", "classifier.js", "rules.json", "model.json"):
        assert not re.findall(
            r"https?://", (public / name).read_text().replace("http://www.w3", "")
        )


def test_photos_that_are_no_longer_shown_are_removed(public):
    assert sorted(path.name for path in (public / "examples").iterdir()) == [
        "1.jpg",
        "2.jpg",
        "3.jpg",
    ]


@pytest.mark.parametrize("name", ["index.html", "examples/mine.jpg"])
def test_what_is_in_the_way_is_not_overwritten(tmp_path, name):
    file = tmp_path / "public" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    result = python("publish.py", cwd=tmp_path)
    assert "public holds something else" in error_line(result)
    assert file.read_text() == "mine"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_that_nothing_is_packed_under(tmp_path):
    result = python("publish.py", "nothing:latest", cwd=tmp_path)
    assert "nothing called nothing" in error_line(result)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The project without ONNX Runtime for browsers."""
    return copy_project(tmp_path_factory.mktemp("project"))


def test_without_npm_the_error_says_where_to_put_the_file(project):
    result = run(shutil.which("python"), "publish.py", cwd=project, PATH="/nowhere")
    line = error_line(result)
    assert "npm pack onnxruntime-web@1.30.0 fails" in line
    assert "install Node.js, or put what it writes on another machine into" in line
    assert line.endswith(str(project))
    assert not (project / "public").exists()


def test_a_damaged_package_is_not_used(project):
    (project / "onnxruntime-web-1.30.0.tgz").write_bytes(b"something else")
    result = run(shutil.which("python"), "publish.py", cwd=project)
    assert "isn't as it was published: delete it" in error_line(result)
    assert not (project / "public").exists()


# The model file


def test_model_file_says_what_it_needs(public):
    model = onnx.load(public / "model.onnx")
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert said["labels"] == ["ants", "bees"]
    assert (said["preprocessing"]["resize"], said["preprocessing"]["crop"]) == (256, 224)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-[0-9a-f]{12}", said["version"])
    assert "reason" in said["unlike"]


# The page


def test_page_says_that_nothing_is_uploaded(page):
    expect(page.get_by_role("heading", level=1)).to_have_text("Ants or bees?")
    expect(page.locator("#lead")).to_contain_text("nothing is uploaded")
    expect(page.locator("#links a")).to_have_count(3)
    for link in page.locator("#links a").all():
        assert page.request.get(link.evaluate("link => link.href")).ok


def test_page_answers_without_a_network(page, photo):
    page.context.set_offline(True)
    page.locator("#maps").check()
    page.set_input_files("#file", photo)
    expect(page.locator(".card h2")).to_have_text(re.compile("^(ants|bees)$"), timeout=20_000)
    expect(page.locator(".card canvas")).to_have_count(1)


def test_example_photo_gets_an_answer_at_one_click(page):
    page.get_by_role("button", name="Example 2").click()
    expect(page.locator(".card h2")).to_have_count(1, timeout=20_000)


def test_page_fits_a_phone(page, photo):
    page.set_viewport_size({"width": 390, "height": 844})
    page.set_input_files("#file", photo)
    expect(page.locator(".card h2")).to_have_count(1, timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_page_answers_as_the_service_does(loaded, bentoml_url, pictures):
    for photo in sorted(pictures.glob("val/*/*.jpg")):
        said = answer(loaded, photo.read_bytes())
        expected = post(bentoml_url, photo.read_bytes(), params={"explain": 1}).json()
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
    **{f"{w}×{h}": lambda w=w, h=h: encode(drawing(w, h), "PNG") for w, h in SIZES},
}


@pytest.mark.parametrize("name", PICTURES)
def test_pixels_are_those_of_the_service(loaded, name):
    data = PICTURES[name]()
    pixels = loaded.evaluate(READ, base64.b64encode(data).decode())
    np.testing.assert_array_equal(np.reshape(pixels, (224, 224, 3)), images.read(data))


def test_a_large_jpeg_is_nearly_the_same(loaded):
    """Python's decoder reduces it, before its pixels are averaged."""
    data = encode(drawing(4032, 3024), "JPEG")
    pixels = loaded.evaluate(READ, base64.b64encode(data).decode())
    difference = np.abs(np.reshape(pixels, (224, 224, 3)) - images.read(data).astype(int))
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


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_the_sentence_of_the_service(loaded, name):
    data = BAD[name]()
    with pytest.raises(StackError) as refused:
        images.read(data)
    assert answer(loaded, data)["error"] == str(refused.value)


def test_a_format_that_browsers_cannot_read_is_named(loaded):
    said = answer(loaded, encode(drawing(300, 300), "TIFF"))
    assert said["error"].startswith("This TIFF file can't be read")
    assert said["error"].endswith("Save it anew, as a JPEG or PNG.")


@pytest.fixture
def tampered(public, tmp_path) -> Path:
    return shutil.copytree(public, tmp_path / "site")


@pytest.mark.parametrize("name", ["model.onnx", "onnxruntime.wasm"])
def test_a_file_that_does_not_match_its_hash_is_not_run(browser, tampered, name):
    data = bytearray((tampered / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tampered / name).write_bytes(data)
    with page_check.served(tampered) as url, browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        expect(page.locator(TOLD)).to_have_text(
            f"The file {name} can't be loaded, or isn't the one that belongs to this page: check"
            " the connection, and load the page again.",
            timeout=30_000,
        )


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


# --check


def test_check_asks_page_and_service(public, pictures):
    result = python("publish.py", "--check", pictures / "val", cwd=public.parent)
    assert result.returncode == 0, result.stderr
    said = "the same label for 6 of 6 photos that both can read (of 6), and unlike for 6"
    assert said in result.stdout


def test_check_of_a_folder_without_photos(tmp_path):
    result = python("publish.py", "--check", tmp_path, cwd=tmp_path)
    assert "is no folder with photos in it" in error_line(result)
    assert not (tmp_path / "public").exists()


SAID = {"label": "ants", "probabilities": {"ants": 0.6, "bees": 0.4}, "similarity": 0.5, "ms": 9.0}
SAID["unlike"] = False
MOVED = {**SAID, "probabilities": {"ants": 0.63, "bees": 0.37}}


@pytest.mark.parametrize(
    ("name", "page", "service", "far"),
    [
        ("a.jpg", SAID, {**SAID, "label": "bees"}, True),
        ("a.jpg", {"error": "broken"}, SAID, True),
        ("a.jpg", SAID, MOVED, True),
        ("a.png", SAID, MOVED, False),
        ("a.jpg", SAID, SAID, False),
        ("a.jpg", {"error": "damaged"}, {"error": "damaged"}, False),
    ],
)
def test_check_fails_where_answers_differ(name, page, service, far):
    answers = [(Path("b.jpg"), SAID, SAID), (Path(name), page, service)]
    if far:
        with pytest.raises(StackError, match=f"differ too much: {name}"):
            page_check.report(answers)
    else:
        page_check.report(answers)


def test_check_counts_what_both_can_read(capsys):
    page_check.report([(Path("a.jpg"), SAID, SAID), (Path("b"), {"error": "x"}, {"error": "y"})])
    said = "the same label for 1 of 1 photos that both can read (of 2), and unlike for 1"
    assert said in capsys.readouterr().out


# docs/


def code_block(language: str, part: str) -> str:
    """Return the block of code in the documentation that contains a part."""
    text = (PROJECT / "docs/static-page.md").read_text()
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    (block,) = (block for block in blocks if part in block)
    return block


def test_python_of_the_documentation_answers_as_the_service(
    public, bentoml_url, tmp_path, pictures
):
    shutil.copy(public / "model.onnx", tmp_path)
    for photo in sorted(pictures.glob("val/*/*.jpg")):
        shutil.copy(photo, tmp_path / "image.jpg")
        result = run(sys.executable, "-c", code_block("python", "onnxruntime"), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        expected = post(bentoml_url, photo.read_bytes()).json()
        assert json.loads(result.stdout) == pytest.approx(expected["probabilities"], abs=1e-5)


def test_javascript_of_the_documentation_answers_as_the_service(
    browser, tampered, bentoml_url, photo
):
    (tampered / "mine.html").write_text(code_block("html", "classify"))
    with page_check.served(tampered) as url, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{url}mine.html")
        page.set_input_files("#file", photo)
        expect(page.locator("#answer")).to_contain_text("label", timeout=30_000)
        said = json.loads(page.locator("#answer").inner_text())
    expected = post(bentoml_url, photo.read_bytes()).json()
    assert said["probabilities"] == pytest.approx(expected["probabilities"], abs=0.02)
