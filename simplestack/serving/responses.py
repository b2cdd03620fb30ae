"""How an answer is written as JSON, and how an exception becomes one."""

import json
import traceback
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from simplestack.serving.errors import HttpError


def to_json(content: Any) -> str:
    """Return a line of JSON, with letters as they are instead of escaped."""
    return json.dumps(content, ensure_ascii=False) + "\n"


class JsonLine(JSONResponse):
    """JSON that ends like a line, so that a terminal shows it well."""

    def render(self, content: Any) -> bytes:
        """Encode the body."""
        return to_json(content).encode()


async def error_response(_: Request, error: Any) -> JsonLine:
    """Return `{"error": "…"}`, with the status of an HttpError."""
    return JsonLine({"error": str(error)}, error.status, error.headers)


async def wrong_method(request: Request, error: Any) -> JsonLine:
    """Return the 405 of Starlette's router as JSON."""
    said = f"Another method than {request.method} is needed here."
    return JsonLine({"error": said}, error.status_code, error.headers)


async def internal_error(request: Request, error: Exception) -> JsonLine:
    """Return a 500 for an error that nobody has foreseen, and put its traceback into the log."""
    request.state.record["traceback"] = "".join(traceback.format_exception(error))
    return JsonLine(
        {"error": "The server made a mistake: its log says more."},
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )


REFUSALS = {HttpError: error_response, 405: wrong_method}
HANDLERS = {**REFUSALS, Exception: internal_error}
