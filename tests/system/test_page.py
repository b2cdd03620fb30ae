"""The page in a real browser, and the programs that it offers."""

import base64
import csv
import io
import re
import shutil
import sys
import zipfile

import helpers
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from simplestack.packing import onnx_file
from simplestack.serving.inference import OnnxModel

SLOW = 20_000  # ms for an answer on a busy machine


@pytest.fixture
def page(browser, bentoml_url):
    """The page, freshly opened; errors and requests to elsewhere fail the test."""
    with helpers.watched_page(browser, bentoml_url, "Content Security Policy") as page:
        yield opened(page, bentoml_url)


def opened(page, url):
    page.goto(url)
    expect(page.locator("#model")).to_contain_text("validation photos")
    expect(page.locator("pre").first).to_contain_text("/predict")
    return page


@pytest.fixture(scope="module")
def own(bento, model_file, photo, tmp_path_factory):
    """The URL of a Bento of other classes that asks for a token, and a picture it calls unlike."""
    folder = tmp_path_factory.mktemp("own")
    noise, changes = helpers.other_classes(model_file, photo, folder)
    other = shutil.copytree(bento, folder / "bento")
    (file,) = other.glob("models/*/*/model.onnx")
    onnx_file.write_metadata(file, {**OnnxModel(file).metadata, **changes})
    with helpers.gunicorn(other, API_TOKEN="sesame") as (url, _):  # noqa: S106
        yield url, noise


@pytest.fixture
def own_page(browser, own):
    with browser.new_context() as context:
        yield opened(context.new_page(), own[0])


def test_the_page_names_classes_accuracy_and_kinds_of_files(page):
    expect(page.get_by_role("heading", level=1)).to_have_text("Ants or bees?")
    expect(page.get_by_role("note")).to_contain_text("knows nothing of real photos")
    about = page.locator("#model")
    expect(about).to_contain_text(re.compile(r"It is correct on \d of 6 validation photos \("))
    reason = "it was trained on fewer than 40 photos"
    expect(about).to_contain_text(f"can't mark photos unlike its training photos, as {reason}")
    accepted = page.locator("#file").get_attribute("accept")
    assert accepted.split(",") == ["image/*", ".heic", ".heif", ".ppm", ".pgm"]


def test_several_photos_are_shown_in_the_order_chosen(page, pictures):
    photos = sorted(pictures.glob("val/*/*.jpg"))
    page.set_input_files("#file", photos[:3])
    labels = page.locator(".card h2")
    expect(labels).to_have_text([re.compile("^(ants|bees)$")] * 3, timeout=SLOW)
    expect(page.locator(".card").first.locator("dt")).to_have_count(2)
    expect(page.get_by_role("status")).to_contain_text(".jpg: ")
    page.set_input_files("#file", photos[3:5])
    expect(labels).to_have_count(5, timeout=SLOW)
    names = [path.name for path in (*photos[3:5], *photos[:3])]  # the latest on top
    assert page.locator(".card .name").all_text_contents() == names


PASTE = """async (data) => {
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "pasted.jpg", { type: "image/jpeg" }));
    document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer }));
}"""


def test_examples_pasted_pictures_and_those_that_no_browser_shows_get_answers(
    page, photo, tmp_path
):
    labels, images = page.locator(".card h2"), page.locator("#examples button")
    expect(images).to_have_count(3)
    expect(images.first.locator("img")).to_have_js_property("complete", True)
    assert images.first.locator("img").evaluate("image => image.naturalWidth") > 0
    Image.new("RGB", (300, 300), "brown").save(tmp_path / "scan.tif")
    page.set_input_files("#file", tmp_path / "scan.tif")
    expect(labels).to_have_count(1, timeout=SLOW)
    seen, heat = page.locator(".card img"), page.locator(".card canvas")
    expect(seen).to_have_js_property("naturalWidth", 224)
    expect(heat).to_have_count(1)
    page.get_by_label("Show where the network looked").check()
    assert heat.bounding_box() == pytest.approx(seen.bounding_box(), abs=1)  # all of it
    (tmp_path / "junk.tif").write_bytes(b"II*\0junk")
    page.set_input_files("#file", tmp_path / "junk.tif")
    expect(page.locator(".card .error")).to_contain_text("This TIFF file can't be read")
    expect(seen).to_have_count(1)
    page.get_by_role("button", name="Example 2").click()
    expect(labels).to_have_count(2, timeout=SLOW)
    expect(page.get_by_role("status")).to_contain_text("example 2: ")
    page.evaluate(PASTE, base64.b64encode(photo.read_bytes()).decode())
    expect(labels).to_have_count(3, timeout=SLOW)


def test_activation_map_is_switched_on_by_keyboard_and_is_red_over_grey(page, tmp_path):
    Image.new("RGB", (400, 300), (250, 200, 0)).save(tmp_path / "yellow.png")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.set_input_files("#file", tmp_path / "yellow.png")
    canvas = page.locator(".card canvas")
    expect(canvas).to_have_count(1, timeout=SLOW)
    for element in (canvas, page.locator("#legend")):
        expect(element).to_be_hidden()
    page.get_by_label("Show where the network looked").focus()
    page.keyboard.press("Space")
    expect(page.locator("main")).not_to_have_class("maps-off")
    for element in (canvas, page.locator("#legend")):
        expect(element).to_be_visible()
    box, image = canvas.bounding_box(), page.locator(".card img").bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1)
    assert box["height"] == pytest.approx(min(image["width"], image["height"]) * 224 / 256, abs=1)
    shot = Image.open(io.BytesIO(page.locator(".card figure").screenshot())).convert("RGB")
    pixels = np.asarray(shot, dtype=int)
    redness = pixels[..., 0] - pixels[..., 1]
    assert redness.max() > 60
    # What the network doesn't see is grey, as is the edge of what it sees.
    side = shot.height * 224 / 256
    left, top = round((shot.width - side) / 2), round((shot.height - side) / 2)
    assert max(redness[:, : left + 2].max(), redness[: top + 2].max()) < 10
    assert np.ptp(pixels[shot.height // 2, 5]) < 3


def test_plain_words_stand_out_on_a_phone_too(page, photo, tmp_path):
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.7")
    page.set_input_files("#file", [photo, tmp_path / "notes.pdf"])
    expect(page.locator(".card h2")).to_have_count(1, timeout=SLOW)
    expect(page.locator(".error")).to_contain_text("This is a PDF file", timeout=SLOW)
    page.get_by_label("Show where the network looked").check()
    for selector in ("h1", "#legend", "#status", "pre", ".program .copy", "footer a"):
        expect(page.locator(selector).first).to_be_visible()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        helpers.check_contrast(page)
    helpers.check_fits_a_phone(page)


def test_api_documentation_is_shown(page):
    page.get_by_role("link", name="API documentation").click()
    expect(page.locator(".opblock-post").first).to_contain_text("/predict", timeout=SLOW)


def test_photos_that_waited_for_the_token_get_answers_and_unlike_ones_say_so(own_page, own, photo):
    page, (_, noise) = own_page, own
    expect(page.get_by_role("heading", level=1)).to_have_text("Fourmis d’été or 蜜蜂?")
    expect(page.locator("#examples")).to_be_hidden()
    page.set_input_files("#file", [photo, noise])
    expect(page.locator(".error")).to_have_count(2, timeout=SLOW)
    page.get_by_label("access token").fill("sesame")
    page.keyboard.press("Enter")
    expect(page.locator(".card canvas")).to_have_count(2, timeout=SLOW)
    cards = page.locator(".card:has(h2)")  # the others have waited for the token
    assert cards.locator(".name").all_text_contents() == [photo.name, noise.name]
    expect(page.locator("#model")).to_contain_text("as 1 of the validation photos")
    like, unlike = (cards.filter(has_text=x.name) for x in (photo, noise))
    expect(like.locator("h2")).to_have_text(re.compile("^(Fourmis d’été|蜜蜂)$"))
    expect(unlike.locator("h2")).to_have_text("This doesn't look like any training photo.")
    expect(unlike).to_contain_text(re.compile("If it must be one: (Fourmis d’été|蜜蜂)"))
    opacity = "bar => getComputedStyle(bar).opacity"
    strong, faded = (x.locator(".fill").first.evaluate(opacity) for x in (like, unlike))
    assert float(faded) < float(strong)
    expect(page.get_by_role("status")).to_contain_text("doesn't look like any training photo")


def test_a_photo_on_its_way_while_the_token_is_typed_gets_its_answer(own_page, photo):
    def type_token(route):
        if "authorization" not in route.request.headers:
            own_page.locator("#token").evaluate("input => { input.value = 'sesame'; }")
        route.continue_()

    own_page.route("**/predict**", type_token)
    own_page.set_input_files("#file", photo)
    expect(own_page.locator(".card h2")).to_have_count(1, timeout=SLOW)


PROGRAMS = {
    "curl": ("sh", "-c"),
    "Python": (sys.executable, "-c"),
    "JavaScript": ("node", "--input-type=module", "-e"),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(("given", "labels"), [("page", "ants|bees"), ("own_page", "Fourmis|蜜蜂")])
def test_copied_program_works_with_and_without_a_token(
    request, photo, tmp_path, *, name, given, labels
):
    page = request.getfixturevalue(given)
    page.context.grant_permissions(["clipboard-read"])
    if name == "JavaScript" and not shutil.which("node"):
        pytest.skip("node is missing: apt install nodejs")
    button = page.get_by_role("button", name=f"Copy {name}")
    button.click()
    expect(button).to_have_text("Copied")
    code = page.evaluate("navigator.clipboard.readText()").replace("TOKEN", "sesame")
    shutil.copy(photo, tmp_path / "image.jpg")
    result = helpers.run(*PROGRAMS[name], code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(rf"label\W+({labels})", result.stdout)


def keep(page, index, label=""):
    """Correct the answer to a photo, by keyboard only; without a label, it is right."""
    card = page.locator(".card").nth(index)
    card.get_by_role("button", name="Right").focus()
    if label:
        page.keyboard.press("Tab")
        known = card.locator("option", has_text=label).count()
        page.keyboard.type(label if known else "another class")
        page.keyboard.press("Tab")
        page.keyboard.type("" if known else label)
    page.keyboard.press("Enter")
    expect(card.get_by_role("group", name="Is that right?")).to_contain_text("in this browser")
    expect(page.get_by_role("status")).to_contain_text(f"Kept in this browser: {label}")


def test_corrections_are_made_by_keyboard_and_downloaded_as_a_zip_that_can_be_added(
    page, pictures, tmp_path
):
    photos = sorted(pictures.glob("val/*/*.jpg"))
    page.set_input_files("#file", photos)
    expect(page.locator(".card h2")).to_have_count(6, timeout=SLOW)
    expect(page.locator("#corrections")).to_be_hidden()
    expect(page.locator("footer")).to_contain_text("until you delete them: none is sent")
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    wild = '=蜜蜂 "wild", 大'
    keep(page, 0)
    keep(page, 1, "none of these")
    for index in (2, 3, 4):
        keep(page, index, wild)
    keep(page, 1, wild)  # in place of the other correction
    keep(page, 1, "none of these")
    card = page.locator(".card").nth(5)
    for name in ("a/b", "a\\b", ".a", " "):
        card.get_by_label("No, it is …").select_option("another class …")
        card.get_by_label("Name of the class").fill(name)
        page.keyboard.press("Enter")
        expect(card.locator(".error")).to_contain_text("The name of a class")
    helpers.check_contrast(page)
    helpers.check_fits_a_phone(page)
    page.reload()  # they stay
    expect(page.locator("#corrections")).to_contain_text("5 corrections in this browser: ")
    with page.expect_download() as download:
        page.get_by_role("button", name="download").click()
    download.value.save_as(tmp_path / "a.zip")
    assert {url for url in sent if not url.startswith("blob:")} <= {
        page.url,
        f"{page.url}model.json",
        f"{page.url}docs.json",
        *(f"{page.url}examples/{i}.jpg" for i in (1, 2, 3)),
    }
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        table = csv.DictReader(io.StringIO(archive.read("corrections.csv").decode()))
        rows = {row["file"].removeprefix("'"): row for row in table}
        assert {*rows, "corrections.csv"} == {*archive.namelist()}
        assert all(info.flag_bits & 0x800 for info in archive.infolist())
        contents = {archive.read(name) for name in rows}
    assert contents == {photo.read_bytes() for photo in photos[:5]}
    assert sorted(row["correction"] for row in rows.values())[:3] == [f"'{wild}"] * 3
    assert {name.rpartition("/")[0] for name in rows} == {
        "",
        wild,
        *(row["answer"] for name, row in rows.items() if row["correction"] == row["answer"]),
    }
    unpacked = tmp_path / "unpacked"
    result = helpers.run("unzip", "-q", tmp_path / "a.zip", "-d", unpacked, LC_ALL="C.UTF-8")
    assert (result.returncode, len(list((unpacked / wild).iterdir()))) == (0, 3)
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="delete").click()
    expect(page.locator("#corrections")).to_be_hidden()
    expect(page.get_by_role("status")).to_have_text("The corrections are deleted.")


def test_a_browser_that_cannot_keep_corrections_says_so_and_answers(browser, bentoml_url, photo):
    refused = "indexedDB.open = () => { throw new DOMException('', 'SecurityError'); }"
    failing = "indexedDB.open = () => { const x = {}; setTimeout(() => x.onerror()); return x; }"
    for script, said in (
        (refused, "This browser can't keep corrections."),
        (failing, "This browser can't keep corrections."),
        ("", "This browser has no room for the correction"),
    ):
        with browser.new_context() as context:
            page = context.new_page()
            page.add_init_script(script)
            page.on("pageerror", lambda error: pytest.fail(str(error)))
            opened(page, bentoml_url)
            if not script:
                quota = {"origin": bentoml_url, "quotaSize": 1}
                context.new_cdp_session(page).send("Storage.overrideQuotaForOrigin", quota)
            for count in (1, 2):
                page.set_input_files("#file", photo)
                expect(page.locator(".card h2")).to_have_count(count, timeout=SLOW)
            page.get_by_role("button", name="Right").first.click()
            expect(page.locator(".card .error")).to_contain_text(said)
            expect(page.get_by_role("status")).to_contain_text(said)
