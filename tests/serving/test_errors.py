"""Errors: one line that can be shown, and for a picture the status of the answer."""

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from simplestack.serving import errors
from simplestack.serving.responses import HANDLERS


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.BadImageError, 400),
        (errors.DamagedImageError, 400),
        (errors.TooLargeError, 413),
        (errors.UnsupportedFormatError, 415),
    ],
)
def test_an_error_carries_its_status(kind, status):
    def fail(_):
        raise kind("Say “why”.")

    app = Starlette(routes=[Route("/", fail)], exception_handlers=HANDLERS)
    answer = TestClient(app).get("/")
    assert (answer.status_code, answer.text) == (status, '{"error": "Say “why”."}\n')
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *(("Käfer “1”.jpg", "Käfer “1”.jpg"), ("two\nlines\t", "two\\nlines\\t"), ("", "")),
        *(("\x1b[31m", "\\x1b[31m"), ("caf\udce9", "caf\\udce9"), ("\u202e", "\\u202e")),
    ],
)
def test_a_message_is_one_line_that_controls_no_terminal(text, shown):
    assert errors.printable(text) == str(errors.StackError(text)) == shown
