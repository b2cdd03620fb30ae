"""The page in a real browser, its API documentation, and requests from other pages."""

import base64
import io
import operator
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import bentoml
import numpy as np
import pytest
import yaml
from helpers import get, gunicorn, metrics, post, run, send, watched_page
from PIL import Image
from playwright.sync_api import Page, expect

from simplestack.packing import build
from simplestack.serving import images, site
from simplestack.serving.inference import OnnxModel

PREFLIGHT = {"Origin": "https://mine.example", "Access-Control-Request-Method": "POST"}


@pytest.fixture
def page(browser, bentoml_url) -> Iterator[Page]:
    """The page, freshly opened; whatever it logs or loads from elsewhere fails the test."""
    with watched_page(browser, bentoml_url, "Content Security Policy") as page:
        page.goto(bentoml_url, wait_until="networkidle")
        yield page


def test_title_names_the_classes(page):
    expect(page.get_by_role("heading", level=1)).to_have_text("Ants or bees?")


@pytest.mark.parametrize(
    ("classes", "title"),
    [
        (["BMW", "Audi", "VW"], "BMW, Audi or VW?"),
        (["élan", "b"], "Élan or b?"),
        (["a"] * 6, "6 kinds of things?"),
    ],
)
def test_title_asks_for_the_class(classes, title):
    assert site.title(classes) == title


def test_disclaimer_of_a_demonstration_is_shown(page):
    expect(page.get_by_role("note")).to_contain_text("knows nothing of real photos")


def test_model_and_its_accuracy_are_named(page):
    expect(page.locator("#model")).to_contain_text(
        re.compile(r"right on \d of 6 validation photos \(")
    )


def test_chosen_photo_gets_a_label_and_bars(page, photo):
    page.set_input_files("#file", photo)
    card = page.locator(".card")
    expect(card.locator("h2")).to_have_text(re.compile("^(ants|bees)$"), timeout=20_000)
    expect(card.locator("dt")).to_have_count(2)
    expect(page.get_by_role("status")).to_contain_text("00.jpg: ")


def test_several_photos_are_shown_in_the_order_chosen(page, pictures):
    photos = sorted(pictures.glob("val/*/*.jpg"))
    page.set_input_files("#file", photos[:3])
    expect(page.locator(".card h2")).to_have_count(3, timeout=20_000)
    page.set_input_files("#file", photos[3:5])
    expect(page.locator(".card h2")).to_have_count(5, timeout=20_000)
    names = [path.name for path in (*photos[3:5], *photos[:3])]  # the latest on top
    assert page.locator(".card .name").all_text_contents() == names


def test_example_photo_gets_an_answer_at_one_click(page):
    examples = page.locator("#examples button")
    expect(examples).to_have_count(3)
    expect(examples.first.locator("img")).to_have_js_property("complete", True)
    assert examples.first.locator("img").evaluate("image => image.naturalWidth") > 0
    page.get_by_role("button", name="Example 2").click()
    expect(page.locator(".card h2")).to_have_count(1, timeout=20_000)
    expect(page.get_by_role("status")).to_contain_text("example 2: ")


def test_example_photo_is_a_jpeg(bentoml_url):
    example = get(f"{bentoml_url}/examples/1.jpg")
    assert example.headers["content-type"] == "image/jpeg"
    assert example.content.startswith(b"\xff\xd8")


@pytest.mark.parametrize("path", ["examples/4.jpg", "examples/", "examples/..%2Fmodel.onnx"])
def test_nothing_else_is_beside_the_example_photos(bentoml_url, path):
    assert get(f"{bentoml_url}/{path}").status_code == 404


@pytest.mark.parametrize("path", ["nothing", "predict%0a", "docs/", "static_content"])
def test_a_path_that_leads_nowhere_is_said_in_json(bentoml_url, path):
    answer = get(f"{bentoml_url}/{path}")
    assert answer.status_code == 404
    assert answer.json() == {"error": "There is nothing at this path."}


def test_another_method_is_said_in_json(bentoml_url):
    answer = send("POST", f"{bentoml_url}/model.json")
    assert answer.status_code == 405
    assert answer.json() == {"error": "Another method than POST is needed here."}


def test_picture_that_the_browser_cannot_show_gets_a_placeholder_and_an_answer(page, tmp_path):
    Image.new("RGB", (300, 300), "brown").save(tmp_path / "scan.tif")
    page.set_input_files("#file", tmp_path / "scan.tif")
    expect(page.locator(".card h2")).to_have_count(1, timeout=20_000)
    expect(page.locator(".card figure")).to_have_text("This browser can't show scan.tif.")
    expect(page.locator(".card img, .card canvas")).to_have_count(0)


def test_files_of_all_formats_can_be_chosen(page):
    accepted = page.locator("#file").get_attribute("accept")
    assert accepted.split(",") == ["image/*", ".heic", ".heif", ".ppm", ".pgm"]


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """A picture that is unlike all others."""
    path = tmp_path_factory.mktemp("noise") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def own_url(bento, photo, noise) -> Iterator[str]:
    """The URL of a Bento of other classes, whose photos nobody may see, that asks for a token.

    It has a threshold between the similarities of a photo and of the picture of noise.
    """
    file = next(bento.glob("models/*/*/model.onnx"))
    pixels = np.stack([images.read(path.read_bytes()) for path in (photo, noise)])
    high, low = OnnxModel(file)(pixels)[2].tolist()
    assert low < high
    unlike = {"threshold": (low + high) / 2, "validation_photos_unlike": 1 / 6}
    about = {**get_metadata(bento), "classes": ["Fourmis d’été", "蜜蜂"], "examples": []}
    about["unlike"] = {**unlike, "chosen_by": "this test"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BentoML's, when it imports a service
        own = build.build_bento("own", file, about, {})
    try:
        with gunicorn(Path(own.path), API_TOKEN="sesame") as (url, _):  # noqa: S106
            yield url
    finally:
        bentoml.delete(own.tag)
        bentoml.models.delete(own.info.all_models[0].tag)


def get_metadata(bento: Path) -> dict:
    return yaml.safe_load(next(bento.glob("models/*/*/model.yaml")).read_text())["metadata"]


def test_labels_are_not_escaped(own_url, photo):
    answer = post(own_url, photo.read_bytes(), headers={"Authorization": "Bearer sesame"})
    assert '"Fourmis d’été": ' in answer.content.decode()
    assert '"蜜蜂": ' in answer.content.decode()
    assert '"蜜蜂"' in get(f"{own_url}/model.json").content.decode()


def test_a_photo_that_is_unlike_is_said_to_be_so(own_url, photo, noise):
    before, headers = metrics(own_url), {"Authorization": "Bearer sesame"}
    like, unlike = (post(own_url, x.read_bytes(), headers=headers).json() for x in (photo, noise))
    assert (like["unlike"], unlike["unlike"]) == (False, True)
    about = get(f"{own_url}/model.json").json()["unlike"]
    assert unlike["similarity"] < about["threshold"] < like["similarity"]
    counted = metrics(own_url) - before
    assert counted["unlike_answers_total",] == 1


def test_the_reason_is_given_where_no_photo_is_called_unlike(page, bentoml_url):
    said = get(f"{bentoml_url}/model.json").json()["unlike"]
    assert said == {"threshold": None, "reason": "it was trained on fewer than 20 photos"}
    expect(page.locator("#model")).to_contain_text(
        f"can't say if it looks like none of them, as {said['reason']}"
    )


@pytest.fixture
def own_page(browser, own_url) -> Iterator[Page]:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(own_url, wait_until="networkidle")
        yield page


def test_photos_that_nobody_may_see_are_not_offered(own_page, own_url):
    expect(own_page.get_by_role("heading", level=1)).to_have_text("Fourmis d’été or 蜜蜂?")
    expect(own_page.locator("#examples")).to_be_hidden()
    assert get(f"{own_url}/examples/1.jpg").status_code == 404


def test_all_photos_that_waited_for_the_token_get_their_answers(own_page, pictures):
    photos = sorted(pictures.glob("val/*/*.jpg"))[:2]
    own_page.set_input_files("#file", photos)
    expect(own_page.locator(".error")).to_have_count(2, timeout=20_000)
    own_page.get_by_label("access token").fill("sesame")
    own_page.keyboard.press("Enter")
    expect(own_page.locator(".card h2")).to_have_count(2, timeout=20_000)
    names = own_page.locator(".card:has(h2) .name").all_text_contents()
    assert names == [path.name for path in photos]


def test_a_photo_on_its_way_while_the_token_is_typed_gets_its_answer(own_page, photo):
    def type_token(route):
        if "authorization" not in route.request.headers:
            own_page.locator("#token").evaluate("input => { input.value = 'sesame'; }")
        route.continue_()

    own_page.route("**/predict**", type_token)
    own_page.set_input_files("#file", photo)
    expect(own_page.locator(".card h2")).to_have_count(1, timeout=20_000)


def test_an_unlike_photo_says_so_before_anything_else(own_page, photo, noise):
    own_page.set_input_files("#file", [photo, noise])
    expect(own_page.locator(".error")).to_have_count(2, timeout=20_000)
    own_page.get_by_label("access token").fill("sesame")
    own_page.keyboard.press("Enter")
    expect(own_page.locator(".card canvas")).to_have_count(2, timeout=20_000)
    expect(own_page.locator("#model")).to_contain_text("(as it says of 1 of the validation photos)")
    cards = own_page.locator(".card:has(h2)")  # the others have waited for the token
    like, unlike = (cards.filter(has_text=x.name) for x in (photo, noise))
    expect(like.locator("h2")).to_have_text(re.compile("^(Fourmis d’été|蜜蜂)$"))
    expect(unlike.locator("h2")).to_have_text("This doesn't look like anything it learned from.")
    expect(unlike).to_contain_text(re.compile("If it must be one: (Fourmis d’été|蜜蜂)"))
    opacity = "bar => getComputedStyle(bar).opacity"
    strong, faded = (x.locator(".fill").first.evaluate(opacity) for x in (like, unlike))
    assert float(faded) < float(strong)
    expect(own_page.get_by_role("status")).to_contain_text("doesn't look like anything")


def copied(page: Page, name: str) -> str:
    """Return what is in the clipboard once a program has been copied."""
    page.context.grant_permissions(["clipboard-read"])
    button = page.get_by_role("button", name=f"Copy {name}")
    button.click()
    expect(button).to_have_text("Copied")
    return page.evaluate("navigator.clipboard.readText()")


PROGRAMS = {
    "curl": ("sh", "-c"),
    "Python": (sys.executable, "-c"),
    "JavaScript": ("node", "--input-type=module", "-e"),
}


def run_copied(page: Page, name: str, folder: Path) -> str:
    """Run a copied program beside image.jpg; return what it printed, or skip if it can't run."""
    if not shutil.which(PROGRAMS[name][0]):
        pytest.skip(f"{PROGRAMS[name][0]} is not installed")
    code = copied(page, name).replace("TOKEN", "sesame")
    result = run(*PROGRAMS[name], code, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_copied_program_works_as_pasted(page, photo, tmp_path, name):
    shutil.copy(photo, tmp_path / "image.jpg")
    printed = run_copied(page, name, tmp_path)
    assert re.search(r"label\W+(ants|bees)", printed)


@pytest.mark.parametrize("name", PROGRAMS)
def test_copied_program_has_a_place_for_the_token(own_page, photo, tmp_path, name):
    shutil.copy(photo, tmp_path / "image.jpg")
    printed = run_copied(own_page, name, tmp_path)
    assert re.search(r"label\W+(Fourmis|蜜蜂)", printed)


def test_pasted_picture_gets_an_answer(page, photo):
    data = base64.b64encode(photo.read_bytes()).decode()
    page.evaluate(
        """async (data) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "pasted.jpg", { type: "image/jpeg" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer }));
        }""",
        data,
    )
    expect(page.locator(".card h2")).to_have_count(1, timeout=20_000)


def test_file_that_is_no_image_gets_plain_words(page, tmp_path):
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.7")
    page.set_input_files("#file", tmp_path / "notes.pdf")
    expect(page.locator(".error")).to_contain_text("This is a PDF file", timeout=20_000)


def test_activation_map_is_switched_on_over_the_photo(page, photo):
    page.set_input_files("#file", photo)
    canvas = page.locator(".card canvas")
    expect(canvas).to_have_count(1, timeout=20_000)
    expect(canvas).to_be_hidden()
    page.get_by_label("Show where the network looked").check()
    expect(canvas).to_be_visible()
    box, image = canvas.bounding_box(), page.locator(".card img").bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1)
    assert box["height"] == pytest.approx(min(image["width"], image["height"]) * 224 / 256, abs=1)


def test_activation_map_is_red_over_grey_and_fades_at_its_edge(page, tmp_path):
    Image.new("RGB", (400, 300), (250, 200, 0)).save(tmp_path / "yellow.png")
    page.set_input_files("#file", tmp_path / "yellow.png")
    expect(page.locator(".card canvas")).to_have_count(1, timeout=20_000)
    expect(page.locator("#legend")).to_be_hidden()
    page.get_by_label("Show where the network looked").check()
    expect(page.locator("#legend")).to_be_visible()
    shot = Image.open(io.BytesIO(page.locator(".card figure").screenshot())).convert("RGB")
    pixels = np.asarray(shot, dtype=int)
    redness = pixels[..., 0] - pixels[..., 1]
    assert redness.max() > 60
    # What the network doesn't see is grey, as is the edge of what it sees.
    side = shot.height * 224 / 256
    left, top = round((shot.width - side) / 2), round((shot.height - side) / 2)
    assert redness[:, : left + 2].max() < 10
    assert redness[: top + 2].max() < 10
    assert np.ptp(pixels[shot.height // 2, 5]) < 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(page, photo, tmp_path, scheme):
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.7")
    page.emulate_media(color_scheme=scheme)
    page.set_input_files("#file", [photo, tmp_path / "notes.pdf"])
    expect(page.locator(".error")).to_have_count(1, timeout=20_000)
    page.get_by_label("Show where the network looked").check()
    texts = "h1, #legend, #status, .card h2, .card figure p, .error, pre, .copy, footer a"
    for selector in texts.split(", "):
        text, ground = page.locator(selector).first.evaluate(COLOURS)
        assert contrast(text, ground) >= 4.5, selector  # WCAG 2.2, AA


COLOURS = """(element) => {
    const colour = getComputedStyle(element).color;
    let ground = "rgba(0, 0, 0, 0)";
    for (let at = element; ground === "rgba(0, 0, 0, 0)"; at = at.parentElement)
        ground = getComputedStyle(at).backgroundColor;
    return [colour, ground];
}"""


def contrast(*colours: str) -> float:
    """Return the contrast of two colours, as WCAG defines it."""
    light = []
    for colour in colours:
        rgb = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in rgb]
        light.append(sum(map(operator.mul, (0.2126, 0.7152, 0.0722), linear)) + 0.05)
    return max(light) / min(light)


def test_page_is_usable_by_keyboard(page, photo):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.set_input_files("#file", photo)
    page.get_by_label("Show where the network looked").focus()
    page.keyboard.press("Space")
    expect(page.locator("main")).not_to_have_class("maps-off")


def test_page_fits_a_phone(page, photo):
    page.set_viewport_size({"width": 360, "height": 740})
    page.set_input_files("#file", photo)
    expect(page.locator(".card h2")).to_have_count(1, timeout=20_000)
    page.get_by_label("Show where the network looked").check()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_api_documentation_is_shown(page):
    page.get_by_role("link", name="API documentation").click()
    expect(page.locator(".opblock-post").first).to_contain_text("/predict", timeout=20_000)


@pytest.mark.parametrize("server", ["bentoml", "gunicorn"])
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/docs.json", "/model.json"])
def test_endpoint_of_operation_answers(request, server, path):
    url = request.getfixturevalue(f"{server}_url")
    assert get(url + path).status_code == 200


def test_generated_requests_find_no_violation_of_the_description(gunicorn_url, tmp_path):
    address = f"{gunicorn_url}/docs.json"
    command = ("schemathesis", "run", address, "--max-examples", "100", "--seed", "1")
    result = run(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stdout


@pytest.fixture(scope="module")
def shared_url(bento) -> Iterator[str]:
    """The URL of a server that two other pages may use."""
    with gunicorn(bento, CORS_ORIGINS="https://mine.example, https://b.example") as (url, _):
        yield url


def test_a_named_page_may_ask(shared_url):
    allowed = send("OPTIONS", f"{shared_url}/predict", headers=PREFLIGHT)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://mine.example"


def test_a_named_page_gets_the_answer(shared_url, photo):
    answer = post(shared_url, photo.read_bytes(), headers={"Origin": "https://b.example"})
    assert answer.headers["access-control-allow-origin"] == "https://b.example"


def test_no_other_page_may_ask(shared_url):
    headers = {**PREFLIGHT, "Origin": "https://other.example"}
    other = send("OPTIONS", f"{shared_url}/predict", headers=headers)
    assert "access-control-allow-origin" not in other.headers


def test_no_page_may_ask_unless_one_is_named(gunicorn_url):
    assert send("OPTIONS", f"{gunicorn_url}/predict", headers=PREFLIGHT).status_code == 405
