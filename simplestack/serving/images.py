"""The one path from the bytes of a photo to the array that the network sees.

Validation, calibration, packing and serving all take it, so they can't come to differ.
Needs Pillow and NumPy only: the served image has no torch in it.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageOps, TiffImagePlugin, WebPImagePlugin

from simplestack.serving.errors import (
    BadImageError,
    DamagedImageError,
    TooHeavyError,
    TooManyPixelsError,
    UnsupportedFormatError,
)

RESIZE = 256  # pixels, the shorter side after resizing
CROP = 224  # pixels, the square that the network sees
MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")  # a phone's MPO opens as JPEG

# Pillow loads some formats only when it meets them, and then all it knows, forty more. Not here.
Image.preinit()
LOADED = (AvifImagePlugin, TiffImagePlugin, WebPImagePlugin)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # not one for each of the host's cores: they take memory

# Pillow's own limit only warns, and is one for the whole process; `identify` refuses instead.
Image.MAX_IMAGE_PIXELS = None

STRIP = 2**18  # pixels that are converted at once
BUFFERS = 4_000_000  # bytes, in decoders
TOO_HEAVY = "The picture needs too much memory to decode: use a smaller one."
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
    """Read the header of an encoded image, without decoding its pixels. Raises HttpError."""
    if not data:
        raise BadImageError("There is no image: send the bytes of one as the body.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError as error:
        raise TooHeavyError(TOO_HEAVY) from error
    except Exception as error:  # on damaged headers Pillow's parsers raise almost any type
        if kind := _other_file(data):
            raise UnsupportedFormatError(
                f"This is a {kind} file: use a JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF image."
            ) from error
        raise BadImageError(
            "This is not an image that can be read: use a JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF"
            " file."
        ) from error
    if image.width * image.height > max_pixels:
        raise TooManyPixelsError(
            f"The picture has {image.width}×{image.height} pixels, more than the"
            f" {max_pixels / 1e6:g} million that are read: use a smaller one."
        )
    return image


def memory_to_open(data: bytes) -> int:
    """Estimate how many bytes `identify` takes at most: a WebP's decoder begins with its pixels."""
    if data[8:12] != b"WEBP":
        return 0
    if data[12:16] == b"VP8X":
        width, height = (1 + int.from_bytes(data[i : i + 3], "little") for i in (24, 27))
    elif data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + bits % 2**14, 1 + (bits >> 14) % 2**14
    else:
        width, height = (int.from_bytes(data[i : i + 2], "little") % 2**14 for i in (26, 28))
    return 8 * width * height


def memory_to_decode(image: Image.Image, at_least: int = 2 * RESIZE) -> int:
    """Estimate from the header how many bytes `decode` takes at most."""
    pixels, factor = image.width * image.height, max(1, min(image.size) // at_least)
    stored = pixels * (1 if image.mode in {"1", "L", "P"} else 4)
    inside = 0  # the format's own decoder
    if image.format == "JPEG":
        stored //= min(8, 1 << (factor.bit_length() - 1)) ** 2  # it comes reduced
        if "progressive" in image.info:  # all coefficients are kept, 16 bits each
            inside = 2 * pixels * len(image.getbands())
    elif image.format in {"WEBP", "AVIF"}:
        inside = 12 * pixels
    elif image.format == "TIFF":
        inside = _largest_part(image)
    strip = (8 if _is_rgb(image) else 32) * min(pixels, max(STRIP, image.width * factor))
    return stored + inside + 4 * pixels // factor**2 + strip + BUFFERS


def _largest_part(image: Image.Image) -> int:
    """Return how many bytes a strip or tile of a TIFF takes, which may be larger than it."""

    def number(tag: int, default: int) -> int:
        value = getattr(image, "tag_v2", {}).get(tag)
        return value if isinstance(value, int) else default

    rows = min(image.height, number(TiffImagePlugin.ROWSPERSTRIP, image.height))
    width = number(TiffImagePlugin.TILEWIDTH, image.width)
    return 8 * width * number(TiffImagePlugin.TILELENGTH, rows)


def _other_file(data: bytes) -> str | None:
    head = data[:_XML_HEAD].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith((b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in head:
        return "SVG"
    return next((kind for kind, at, magic in _OTHER_FILES if head[at:].startswith(magic)), None)


def decode(image: Image.Image, at_least: int) -> Image.Image:
    """Decode an opened image into upright 8-bit RGB; of an animation, the first frame.

    A picture with sides of twice `at_least` pixels or more is reduced by a whole number, as long as
    its sides keep so many. Raises HttpError if the pixels can't be decoded.
    """
    try:
        image.draft(image.mode, (at_least, at_least))  # JPEGs come reduced from their decoder
        image.load()
        rgb = _reduced(image, max(1, min(image.size) // at_least))
        return _upright(rgb, image)
    except MemoryError as error:
        raise TooHeavyError(TOO_HEAVY) from error
    except Exception as error:  # on damaged pixels Pillow's decoders raise almost any type
        raise DamagedImageError(
            f"The image is damaged or cut off ({error}): use an undamaged file."
        ) from error


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """Convert to RGB and average squares of factor×factor pixels, in strips: copies of a large
    picture would take several times its memory.
    """
    if factor == 1 and _is_rgb(image):
        return image
    whole = Image.new("RGB", (image.width // factor, image.height // factor))
    rows = factor * max(1, STRIP // (whole.width * factor**2))
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


def _is_rgb(image: Image.Image) -> bool:
    return image.mode == "RGB" and not image.has_transparency_data


def _rgb(image: Image.Image) -> Image.Image:
    if _is_rgb(image):
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
