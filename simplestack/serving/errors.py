"""What a user is told when something can't be done; over HTTP, with which status."""

from http import HTTPStatus
from typing import ClassVar


def printable(text: str) -> str:
    """Escape what would not be shown, or would control a terminal: names of files may hold it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class StackError(Exception):
    """A mistake that a user can make. Its message is one line: what is wrong, and what to do."""

    def __str__(self) -> str:
        return printable(super().__str__())


class HttpError(StackError):
    """A request that can't be answered otherwise. Each kind has a status of its own."""

    status = HTTPStatus.BAD_REQUEST
    headers: ClassVar[dict[str, str]] = {}


class BadImageError(HttpError):
    """The bytes are no image, or a damaged one."""


class DamagedImageError(BadImageError):
    """The bytes are an image, but its pixels can't be decoded."""


class UnauthorizedError(HttpError):
    """The token is missing or wrong."""

    status = HTTPStatus.UNAUTHORIZED
    headers: ClassVar = {"WWW-Authenticate": "Bearer"}


class NotFoundError(HttpError):
    """There is nothing at this path."""

    status = HTTPStatus.NOT_FOUND


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


class TooHeavyError(HttpError):
    """To decode the picture takes more memory or time than there is."""

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
