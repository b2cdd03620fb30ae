"""The one path from the bytes of a photo to the array that the network sees.

Validation, calibration, packing and serving all take it, so they can't come to differ.
Needs Pillow and NumPy only: the served image has no torch in it.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageOps, TiffImagePlugin, WebPImagePlugin

from simplestack.serving.errors import BadImageError, TooManyPixelsError, UnsupportedFormatError

RESIZE = 256  # pixels, the shorter side after resizing
CROP = 224  # pixels, the square that the network sees
MAX_PIXELS = 50_000_000
HEAVY = {"WEBP": 4, "AVIF": 4}  # times the memory that others take a pixel to decode
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")  # a phone's MPO opens as JPEG

# Pillow loads some formats only when it meets them, and then all it knows, forty more. Not here.
Image.preinit()
LOADED = (AvifImagePlugin, TiffImagePlugin, WebPImagePlugin)

# Pillow's own limit only warns, and is one for the whole process; `identify` refuses instead.
Image.MAX_IMAGE_PIXELS = None

STRIP = 256  # rows
ORIENTATION = 0x0112  # in EXIF

Photo = NDArray[np.uint8]
"""CROP×CROP×3 uint8, RGB."""


# (name, offset, magic bytes) of files that people send by mistake. They get a better answer than
# "not an image", without running any parser over them.
_OTHER_FILES = (
    ("PDF", 0, b"%PDF"),
    ("SVG", 0, b"<svg"),
    ("PostScript", 0, b"%!PS"),
    ("Photoshop", 0, b"8BPS"),
    ("ICO", 0, b"\0\0\1\0"),
    ("JPEG 2000", 0, b"\0\0\0\x0cjP  "),
    ("JPEG XL", 0, (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    ("HEIC", 4, (b"ftyphei", b"ftyphev")),
    ("HEIF", 4, (b"ftypmif1", b"ftypmsf1")),
    ("video", 4, (b"ftypiso", b"ftypmp4", b"ftypqt", b"ftyp3g")),
    ("video or sound", 4, b"ftypM4"),
    ("video", 8, b"AVI "),
    ("sound", 8, b"WAVE"),
    ("video", 0, (b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"FLV\1")),
    ("video or sound", 0, b"OggS"),
    ("sound", 0, b"ID3"),
    ("ZIP", 0, b"PK\3\4"),
    ("gzip", 0, b"\x1f\x8b"),
)
_XML_HEAD = 1024  # bytes in which an SVG's root element may hide behind an XML declaration


def identify(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the header of an encoded image, without decoding its pixels.

    Of WebP and AVIF, whose decoders take four times the memory, a quarter of the pixels are read.
    Raises BadImageError, UnsupportedFormatError or TooManyPixelsError.
    """
    if not data:
        raise BadImageError("There is no image: send the bytes of one as the body.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # on damaged headers Pillow's parsers raise almost any type
        if kind := _other_file(data):
            raise UnsupportedFormatError(
                f"This is a {kind} file: use a JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF image."
            ) from error
        raise BadImageError(
            "This is not an image that can be read: use a JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF"
            " file."
        ) from error
    kind = image.format or ""
    most = max_pixels // HEAVY.get(kind, 1)
    if image.width * image.height > most:
        raise TooManyPixelsError(
            f"The picture has {image.width}×{image.height} pixels, more than the"
            f" {most / 1e6:g} million that are read of a {kind}: use a smaller one."
        )
    return image


def _other_file(data: bytes) -> str | None:
    head = data[:_XML_HEAD].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith((b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in head:
        return "SVG"
    return next((kind for kind, at, magic in _OTHER_FILES if head[at:].startswith(magic)), None)


def decode(image: Image.Image, at_least: int) -> Image.Image:
    """Decode an opened image into upright 8-bit RGB; of an animation, the first frame.

    A picture with sides of twice `at_least` pixels or more is reduced by a whole number, as long as
    its sides keep so many. Raises BadImageError if the pixels can't be decoded.
    """
    try:
        image.draft(image.mode, (at_least, at_least))  # JPEGs come reduced from their decoder
        image.load()
        rgb = _reduced(image, max(1, min(image.size) // at_least))
        return _upright(rgb, image)
    except Exception as error:  # on damaged pixels Pillow's decoders raise almost any type
        raise BadImageError(
            f"The image is damaged or cut off ({error}): use an undamaged file."
        ) from error


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """Convert to RGB and average squares of factor×factor pixels, in strips: copies of a large
    picture would take several times its memory.
    """
    if factor == 1:
        return _rgb(image)
    whole = Image.new("RGB", (image.width // factor, image.height // factor))
    rows = factor * max(1, STRIP // factor)
    for top in range(0, whole.height * factor, rows):
        bottom = min(top + rows, whole.height * factor)
        strip = image.crop((0, top, whole.width * factor, bottom))
        whole.paste(_rgb(strip).reduce(factor), (0, top // factor))
    return whole


def _upright(rgb: Image.Image, original: Image.Image) -> Image.Image:
    try:
        rgb.getexif()[ORIENTATION] = original.getexif().get(ORIENTATION, 1)
        ImageOps.exif_transpose(rgb, in_place=True)
    except Exception:  # a photo with an unreadable EXIF block is still a photo
        return rgb
    return rgb


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scale
        grey: NDArray[Any] = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def to_array(image: Image.Image) -> Photo:
    """Turn an opened image into what the network sees, 224×224×3 uint8 RGB.

    The shorter side becomes 256 pixels by antialiased bilinear resizing, then the middle 224×224
    are cut out. Only those are computed, so that a picture of 1×50,000 pixels stays cheap.
    Raises BadImageError.
    """
    whole = image.size
    rgb = decode(image, 2 * RESIZE)  # twice the target: no visible loss
    if (rgb.width < rgb.height) != (whole[0] < whole[1]):
        whole = whole[::-1]  # it was turned
    factor = round(whole[0] / rgb.width)  # by which it was reduced; the last column may be cut off
    width, height = (RESIZE * side // min(whole) for side in whole)
    left, top = round((width - CROP) / 2), round((height - CROP) / 2)
    across, down = whole[0] / factor / width, whole[1] / factor / height  # pixels per target pixel
    box = (left * across, top * down, (left + CROP) * across, (top + CROP) * down)
    return np.asarray(rgb.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box))


def read(data: bytes, max_pixels: int = MAX_PIXELS) -> Photo:
    """Turn the bytes of an encoded image into what the network sees, 224×224×3 uint8 RGB."""
    return to_array(identify(data, max_pixels))
