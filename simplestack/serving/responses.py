"""Answers as lines of JSON, also those to exceptions."""

import json
import traceback
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from simplestack.serving.errors import ImageError


def to_json(content: Any) -> str:
    """Return a line of JSON, with letters as they are instead of escaped."""
    return json.dumps(content, ensure_ascii=False) + "\n"


class JsonLine(JSONResponse):
    """JSON that ends like a line, so that a terminal shows it well."""

    def render(self, content: Any) -> bytes:
        """Return the body, in UTF-8."""
        return to_json(content).encode()


async def image_error(_: Request, error: Any) -> JsonLine:
    """Return `{"error": "…"}` with the status of an ImageError."""
    return JsonLine({"error": str(error)}, error.status)


async def http_error(_: Request, error: Any) -> JsonLine:
    """Return `{"error": "…"}` with the status and the headers of an HTTPException."""
    return JsonLine({"error": error.detail}, error.status_code, error.headers)


async def wrong_method(request: Request, error: Any) -> JsonLine:
    """Return the 405 of Starlette's router as JSON."""
    sentence = f"Another method than {request.method} is needed here."
    return JsonLine({"error": sentence}, error.status_code, error.headers)


async def internal_error(request: Request, error: Exception) -> JsonLine:
    """Return a 500 for an unexpected error, and log its traceback."""
    request.state.record["traceback"] = "".join(traceback.format_exception(error))
    return JsonLine({"error": "The server made a mistake: its log says more."}, 500)


HANDLERS = {ImageError: image_error, HTTPException: http_error, Exception: internal_error}
ROUTER_HANDLERS = {HTTPException: http_error, 405: wrong_method}
