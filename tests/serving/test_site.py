"""The page in a real browser, its API documentation, and requests from other pages."""

import base64
import re
from collections.abc import Iterator

import pytest
from helpers import get, gunicorn, post, run, send
from playwright.sync_api import Page, expect

PREFLIGHT = {"Origin": "https://mine.example", "Access-Control-Request-Method": "POST"}


@pytest.fixture
def page(browser, bentoml_url) -> Iterator[Page]:
    """The page, freshly opened; whatever it logs or loads from elsewhere fails the test."""
    problems: list[str] = []
    with browser.new_context() as context:
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.on(
            "request",
            lambda r: r.url.startswith((bentoml_url, "blob:", "data:")) or problems.append(r.url),
        )
        page.on(
            "console",
            lambda m: "Content Security Policy" in m.text and problems.append(m.text),
        )
        page.goto(bentoml_url, wait_until="networkidle")
        yield page
    assert problems == []


def test_title_names_the_classes(page):
    expect(page.get_by_role("heading", level=1)).to_have_text("Ants or bees?")


def test_disclaimer_of_a_demonstration_is_shown(page):
    expect(page.get_by_role("note")).to_contain_text("knows nothing of real photos")


def test_model_and_its_accuracy_are_named(page):
    expect(page.locator("#model")).to_contain_text("of 6 validation photos")


def test_chosen_photo_gets_a_label_and_bars(page, photo):
    page.set_input_files("#file", photo)
    card = page.locator(".card")
    expect(card.locator("h2")).to_have_text(re.compile("^(ants|bees)$"), timeout=20_000)
    expect(card.locator("dt")).to_have_count(2)
    expect(page.get_by_role("status")).to_contain_text("00.jpg: ")


def test_several_photos_get_a_card_each(page, pictures):
    page.set_input_files("#file", sorted(pictures.glob("val/*/*.jpg"))[:3])
    expect(page.locator(".card h2")).to_have_count(3, timeout=20_000)


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
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_api_documentation_is_shown(page):
    page.get_by_role("link", name="API documentation").click()
    expect(page.locator(".opblock-post")).to_contain_text("/predict", timeout=20_000)


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
