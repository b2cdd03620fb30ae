"""Recognise by their first bytes files and texts that are no image; nothing is parsed."""

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
UNKNOWN = f"This is not an image that can be read: {USE}"
UNREADABLE = (
    "This {kind} file can't be read: it is damaged or cut off, too large, or of a rare kind. Save"
    " it again, as a JPEG or PNG."
)
SEND = "send the bytes of the file, as curl --data-binary @image.jpg does."
MANGLED = f"This image was turned into text on its way, which changed its bytes: {SEND}"

OTHER_FORMATS = {  # files that people send by mistake, by their first bytes
    "PDF": rb"%PDF",
    "PostScript": rb"%!PS",
    "Photoshop": rb"8BPS",
    "ICO": rb"\0\0\x01\0",
    "JPEG 2000": rb"\0\0\0\x0cjP  ",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "video": rb".{4}ftyp(iso|mp4|qt|3g)|.{8}AVI |\x1aE\xdf\xa3|\0\0\x01\xba|FLV\x01",
    "video or sound": rb".{4}ftypM4|OggS",
    "sound": rb".{8}WAVE|ID3",
    "ZIP": rb"PK\x03\x04",
    "gzip": rb"\x1f\x8b",
    # Possessive and atomic: the preamble may be long, and backtracking would take hours.
    "SVG": rb"(?:\xef\xbb\xbf)?\s*+"
    rb"(?>(?:<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^\[>]*+(?:\[.*?\]\s*+)?>)\s*+)*+"
    rb"<(?:[\w.-]++:)?svg[\s/>]",
}
TEXTS = (
    (rb"b['\"]", MANGLED),  # Python's str(bytes)
    (rb"\s*[\[{\"]", f"This is JSON, not an image: {SEND}"),
    (rb"\s*https?://", f"This is an address, not an image, and isn't visited. Instead, {SEND}"),
    (rb"\s*data:|[\w+/=%\r\n-]{64,}\Z", f"This is base64, not an image: {SEND}"),
    (
        rb"[^\r\n]{,500}\.\w{2,5}\s*\Z",
        "This is the name of a file, not an image: put an @ before it, as in"
        " curl --data-binary @image.jpg.",
    ),
    (
        rb"[\s\S]*[\x01-\x08\x0e-\x1f]",  # control codes
        "This is not an image that can be read. If curl -d sent it, use"
        " curl --data-binary @image.jpg: -d leaves bytes out.",
    ),
)


def is_text(data: bytes) -> bool:
    """Return whether data is no image for certain: it has no zero byte, and is no PPM."""
    return b"\0" not in data and not re.match(rb"P[1-6f][\s#]", data)


def is_mangled(data: bytes) -> bool:
    """Return whether data is UTF-8 of other characters than ASCII: no image of any format is."""
    try:
        return not data.isascii() and bool(data.decode())
    except UnicodeDecodeError:
        return False


def error_for(data: bytes) -> ImageError:
    """Return the error for data that can't be opened as an image."""
    for kind, pattern in OTHER_FORMATS.items():
        if re.match(pattern, data, re.DOTALL):
            return UnsupportedFormatError(f"This is a {kind} file: {USE}")
    if is_text(data):
        sentences = (sentence for pattern, sentence in TEXTS if re.match(pattern, data))
        return BadImageError(next(sentences, UNKNOWN))
    if is_mangled(data):
        return BadImageError(MANGLED)
    for name in FORMATS:
        accept = Image.OPEN[name][1]
        if accept and accept(data[:16]):
            return DamagedImageError(UNREADABLE.format(kind=name))
    return BadImageError(UNKNOWN)
