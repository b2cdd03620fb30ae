"""Errors with a message for users: one line with the problem and its remedy.

A picture's error has the status of the answer: 400, 413 or 415. gate.py decides on those of whole
requests: 401, 405, 503, 504, and 413 for a body with too many bytes.
"""


def printable(text: str) -> str:
    """Escape unprintable characters, such as terminal control codes in file names."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class StackError(Exception):
    """A mistake that a user can make. Its message is one line: the problem and its remedy."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ImageError(StackError):
    """A picture that can't be read. Subclasses set the HTTP status of the answer."""

    status = 400


class BadImageError(ImageError):
    """The bytes are no image, or a damaged image."""


class DamagedImageError(BadImageError):
    """The bytes are an image that can't be decoded, perhaps for lack of memory."""


class TooLargeError(ImageError):
    """The picture has too many pixels, or decoding it takes too much memory or time."""

    status = 413


class UnsupportedFormatError(ImageError):
    """The bytes are a file of a known format that the service doesn't read."""

    status = 415


class RareFormatError(ImageError):
    """The picture needs a decoder of its own."""


IMAGE_ERRORS = {x.__name__: x for x in (*ImageError.__subclasses__(), DamagedImageError)}
"""The errors that a decoder may reply with, by name."""
