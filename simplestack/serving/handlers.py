"""How an exception becomes an answer."""

import traceback
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from simplestack.serving.errors import HttpError


async def error_response(_: Request, error: Any) -> JSONResponse:
    """Return `{"error": "…"}`, with the status of an HttpError."""
    return JSONResponse({"error": str(error)}, error.status, error.headers)


async def internal_error(request: Request, error: Exception) -> JSONResponse:
    """Return a 500 for an error that nobody has foreseen, and put its traceback into the log."""
    request.state.record["traceback"] = "".join(traceback.format_exception(error))
    return JSONResponse(
        {"error": "The server made a mistake: its log says more."},
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )


HANDLERS = {HttpError: error_response, Exception: internal_error}
