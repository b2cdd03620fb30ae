"""Answers, errors among them, as lines of JSON."""

import json
import traceback
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from simplestack.serving.errors import ImageError


def to_json(content: Any) -> str:
    """Return a line of JSON; only quotes, backslashes and control characters are escaped."""
    return json.dumps(content, ensure_ascii=False) + "\n"


class JsonLine(JSONResponse):
    """JSON that ends with a line break, so that a terminal's prompt stands on its own line."""

    def render(self, content: Any) -> bytes:
        """Encode the line in UTF-8."""
        return to_json(content).encode()


async def image_error(_: Request, error: Any) -> JsonLine:
    """Return `{"error": "…"}` with the status of an ImageError."""
    return JsonLine({"error": str(error)}, error.status)


async def http_error(_: Request, error: Any) -> JsonLine:
    """Return `{"error": "…"}` with the status and the headers of an HTTPException."""
    return JsonLine({"error": error.detail}, error.status_code, error.headers)


async def internal_error(request: Request, error: Exception) -> JsonLine:
    """Return a 500 for an unexpected error, and log its traceback."""
    request.state.record["traceback"] = "".join(traceback.format_exception(error))
    return JsonLine({"error": "The server made a mistake: its log has the traceback."}, 500)


HANDLERS = {ImageError: image_error, HTTPException: http_error, Exception: internal_error}
