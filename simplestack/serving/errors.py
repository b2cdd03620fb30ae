"""What a user is told when something can't be done; over HTTP, with which status."""

import traceback
from http import HTTPStatus
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse


class StackError(Exception):
    """A mistake that a user can make. Its message is one line: what is wrong, and what to do."""


class HttpError(StackError):
    """A request that can't be answered otherwise. Each kind has a status of its own."""

    status = HTTPStatus.BAD_REQUEST
    headers: ClassVar[dict[str, str]] = {}


class BadImageError(HttpError):
    """The bytes are no image, or a damaged one."""


class UnauthorizedError(HttpError):
    """The token is missing or wrong."""

    status = HTTPStatus.UNAUTHORIZED
    headers: ClassVar = {"WWW-Authenticate": "Bearer"}


class MethodNotAllowedError(HttpError):
    """Another method than POST."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    headers: ClassVar = {"Allow": "POST"}


class BodyTooLargeError(HttpError):
    """More bytes than are read."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    headers: ClassVar = {"Connection": "close"}


class TooManyPixelsError(HttpError):
    """The picture is larger than the limit: perhaps a decompression bomb."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnsupportedFormatError(HttpError):
    """The bytes are a file of a known kind, but not of one that is read here."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class BusyError(HttpError):
    """More requests at once than are taken."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    headers: ClassVar = {"Retry-After": "1"}


class LateError(HttpError):
    """There was no answer in time."""

    status = HTTPStatus.GATEWAY_TIMEOUT


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
