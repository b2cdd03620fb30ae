"""What a user is told: one line that can be shown, and over HTTP a status and headers."""

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from simplestack.serving import errors
from simplestack.serving.responses import HANDLERS


@pytest.mark.parametrize(
    ("kind", "status", "headers"),
    [
        *((errors.HttpError, 400, {}), (errors.BadImageError, 400, {})),
        *((errors.DamagedImageError, 400, {}), (errors.NotFoundError, 404, {})),
        (errors.UnauthorizedError, 401, {"www-authenticate": "Bearer"}),
        (errors.MethodNotAllowedError, 405, {"allow": "POST"}),
        (errors.BodyTooLargeError, 413, {"connection": "close"}),
        *((errors.TooManyPixelsError, 413, {}), (errors.TooHeavyError, 413, {})),
        *((errors.UnsupportedFormatError, 415, {}), (errors.LateError, 504, {})),
        (errors.BusyError, 503, {"retry-after": "1"}),
    ],
)
def test_an_error_carries_its_status_and_headers(kind, status, headers):
    def fail(_):
        raise kind("Say “why”.")

    app = Starlette(routes=[Route("/", fail)], exception_handlers=HANDLERS)
    answer = TestClient(app).get("/")
    body = '{"error": "Say “why”."}\n'.encode()
    assert (answer.status_code, answer.content) == (status, body)
    about = {"content-length": str(len(body)), "content-type": "application/json"}
    assert dict(answer.headers) == about | headers


def test_only_a_damaged_image_is_tried_again_with_more_memory():
    assert issubclass(errors.DamagedImageError, errors.BadImageError)
    assert not issubclass(errors.BadImageError, errors.DamagedImageError)
    assert issubclass(errors.HttpError, errors.StackError)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *(("Käfer “1”.jpg", "Käfer “1”.jpg"), ("two\nlines\t", "two\\nlines\\t"), ("", "")),
        *(("\x1b[31m", "\\x1b[31m"), ("caf\udce9", "caf\\udce9"), ("\u202e", "\\u202e")),
    ],
)
def test_a_message_is_one_line_that_controls_no_terminal(text, shown):
    assert errors.printable(text) == str(errors.StackError(text)) == shown
