"""Errors that a user is shown: one line that says what is wrong, and what to do."""

from http import HTTPStatus


def printable(text: str) -> str:
    """Escape unprintable characters, such as terminal control codes in file names."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class StackError(Exception):
    """A mistake that a user can make. Its message is one line: what is wrong, and what to do."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ImageError(StackError):
    """A picture that can't be read. Each kind sets the status of the service's answer."""

    status = HTTPStatus.BAD_REQUEST


class BadImageError(ImageError):
    """The bytes are no image, or a damaged one."""


class DamagedImageError(BadImageError):
    """The bytes are an image, but it can't be decoded: perhaps for lack of memory."""


class TooLargeError(ImageError):
    """The picture has too many pixels, or decoding it takes too much memory or time."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnsupportedFormatError(ImageError):
    """The bytes are a file of a known kind, but not of one that is read here."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


KINDS = {
    kind.__name__: kind
    for kind in (BadImageError, DamagedImageError, TooLargeError, UnsupportedFormatError)
}
"""What a decoder may reply, by name."""
