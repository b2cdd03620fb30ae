"""The report in a browser."""

import pytest
from helpers import check_contrast, check_fits_a_phone
from playwright.sync_api import expect
from trainings import report_1000_classes, report_mistakes


@pytest.fixture(scope="module")
def report_path(small, tmp_path_factory):  # noqa: ARG001
    return report_mistakes(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def large_report(small, tmp_path_factory):  # noqa: ARG001
    return report_1000_classes(tmp_path_factory.mktemp("large"))


@pytest.mark.parametrize(
    ("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 24, 29)")]
)
@pytest.mark.parametrize("name", ["report_path", "large_report"])
def test_the_page_fits_a_phone_and_its_text_stands_out(request, browser, name, scheme, ground):
    with browser.new_page(color_scheme=scheme) as page:
        page.goto(request.getfixturevalue(name).as_uri())
        page.locator("summary").click()
        expect(page.locator("body")).to_have_css("background-color", ground)
        check_fits_a_phone(page)
        check_contrast(page)
