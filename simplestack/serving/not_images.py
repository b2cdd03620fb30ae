"""Recognise by its first bytes what was sent instead of an image; nothing is parsed."""

import re

from PIL import Image

from simplestack.serving.errors import (
    BadImageError,
    DamagedImageError,
    ImageError,
    UnsupportedFormatError,
)
from simplestack.serving.formats import FORMATS, NAMES

USE = f"use a {NAMES} file."
EMPTY = "There is no image: this is empty."
DAMAGED = "The image is damaged or cut off, or too large to decode: use another file."
TOO_MANY_PIXELS = (
    "The picture has {width}×{height} pixels, more than the {million} million that are read: use a"
    " smaller one."
)
OTHER = f"This is a {{kind}} file: {USE}"
UNKNOWN = f"This is not an image that can be read: {USE}"
UNREADABLE = (
    "This {kind} file can't be read: it is damaged or cut off, too large, or of a rare kind. Save"
    " it again, as a JPEG or PNG."
)
SEND = "send the bytes of the file, as curl --data-binary @image.jpg does."

# (name, offset, magic bytes) of files that people send by mistake.
OTHER_FILES = (
    ("PDF", 0, b"%PDF"),
    ("PostScript", 0, b"%!PS"),
    ("Photoshop", 0, b"8BPS"),
    ("ICO", 0, b"\0\0\1\0"),
    ("JPEG 2000", 0, b"\0\0\0\x0cjP  "),
    ("JPEG XL", 0, b"\xff\x0a"),
    ("JPEG XL", 0, b"\0\0\0\x0cJXL "),
    ("video", 4, b"ftypiso"),
    ("video", 4, b"ftypmp4"),
    ("video", 4, b"ftypqt"),
    ("video", 4, b"ftyp3g"),
    ("video or sound", 4, b"ftypM4"),
    ("video", 8, b"AVI "),
    ("sound", 8, b"WAVE"),
    ("video", 0, b"\x1aE\xdf\xa3"),
    ("video", 0, b"\0\0\1\xba"),
    ("video", 0, b"FLV\1"),
    ("video or sound", 0, b"OggS"),
    ("sound", 0, b"ID3"),
    ("ZIP", 0, b"PK\3\4"),
    ("gzip", 0, b"\x1f\x8b"),
)
SVG = re.compile(  # possessive and atomic, as nothing limits what may come before the root element
    rb"(?:\xef\xbb\xbf)?\s*+"
    rb"(?>(?:<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^\[>]*+(?:\[.*?\]\s*+)?>)\s*+)*+"
    rb"<(?:[\w.-]++:)?svg[\s/>]",
    re.DOTALL,
)
TEXTS = (
    (rb"\s*[\[{\"]", f"This is JSON, not an image: {SEND}"),
    (rb"\s*https?://", f"This is an address, not an image, and isn't visited. Instead, {SEND}"),
    (rb"\s*data:|[\w+/=%\r\n-]{64,}\Z", f"This is base64, not an image: {SEND}"),
    (
        rb"[^\r\n]{,500}\.\w{2,5}\s*\Z",
        "This is the name of a file, not an image: put an @ before it, as in"
        " curl --data-binary @image.jpg.",
    ),
    (
        rb"[\s\S]*[\x01-\x08\x0e-\x1f]",  # not in text
        "This is not an image that can be read. If curl -d sent it, use"
        " curl --data-binary @image.jpg: -d leaves bytes out.",
    ),
)


def is_text(data: bytes) -> bool:
    """Return whether data can't be an image: all have zeros, but for a PPM."""
    return b"\0" not in data and not re.match(rb"P[1-6f][\s#]", data)


def refusal(data: bytes) -> ImageError:
    """Return the error for data that can't be opened as an image."""
    if kind := _other_file(data):
        return UnsupportedFormatError(OTHER.format(kind=kind))
    if is_text(data):
        for pattern, sentence in TEXTS:
            if re.match(pattern, data):
                return BadImageError(sentence)
    elif kind := next(filter(lambda name: _looks_like(name, data), FORMATS), None):
        return DamagedImageError(UNREADABLE.format(kind=kind))
    return BadImageError(UNKNOWN)


def _other_file(data: bytes) -> str | None:
    if SVG.match(data):
        return "SVG"
    return next((kind for kind, at, magic in OTHER_FILES if data.startswith(magic, at)), None)


def _looks_like(name: str, data: bytes) -> bool:
    accept = Image.OPEN[name][1]
    return accept is not None and bool(accept(data[:16]))
