"""The only way from the bytes of a photo to the network's input.

Validation, calibration, packing and serving use it, so that they can't differ.
It needs Pillow, pillow-heif and NumPy only: torch isn't deployed.
"""

import base64
import io
from contextlib import suppress

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from simplestack.serving import not_images
from simplestack.serving.errors import BadImageError, DamagedImageError, ImageError, TooLargeError
from simplestack.serving.formats import FORMATS

RESIZE = 256  # pixels, the shorter side after resizing
CROP = 224  # pixels, the side of the network's input
MAX_PIXELS = 64_000_000  # of a JPEG: after its decoder has reduced it

# Pillow loads these formats only with its forty others, when a file needs one.
Image.preinit()
LOADED = (AvifImagePlugin, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the default, one per host core, multiplies memory
pillow_heif.register_heif_opener(
    decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
)
for writers in (Image.SAVE, Image.SAVE_ALL):  # no HEIC is written
    writers.pop("HEIF", None)  # missing if libheif was built without an encoder
# Some tools store megabytes of settings in a PNG.
PngImagePlugin.MAX_TEXT_CHUNK = 2**24

# Pillow's own limit only warns, and holds for the whole process: `identify` has another.
Image.MAX_IMAGE_PIXELS = None

STRIP_PIXELS = 2**18  # converted at once
TOO_HEAVY = "The picture needs too much memory or time to decode: use a smaller one."
ORIENTATION = 0x0112  # in EXIF
GREY_16 = {"I;16", "I;16B"}  # Pillow's modes
DEEP_GREY = "This kind of deep grey isn't read: save the picture as a JPEG or PNG."

Photo = NDArray[np.uint8]
"""CROP×CROP×3 uint8, RGB."""


def identify(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an encoded image, without decoding its pixels. Raises ImageError."""
    if not data:
        raise BadImageError(not_images.EMPTY)
    if not_images.is_text(data):
        raise not_images.error_for(data)
    try:
        image = Image.open(io.BytesIO(data), formats=[*FORMATS])
    except Exception as error:  # on damaged headers Pillow's parsers raise almost any type
        raise _explain(error, not_images.error_for(data)) from error
    if _is_other_deep_grey(image):
        raise BadImageError(DEEP_GREY)
    if image.width * image.height > max_pixels * _scale(image) ** 2:
        size = {"width": image.width, "height": image.height, "million": f"{max_pixels / 1e6:g}"}
        raise TooLargeError(not_images.TOO_MANY_PIXELS.format_map(size))
    return image


def _is_other_deep_grey(image: Image.Image) -> bool:
    """Return whether an image has more than 8 bits of grey in a range other than 0 to 65535."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    other_bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,)) != (16,)
    return image.mode in {"I", "F"} or (image.mode in GREY_16 and (inverted or other_bits))


def _explain(error: Exception, otherwise: ImageError) -> ImageError:
    """Return TooLargeError if Pillow's error is a lack of memory, else `otherwise`."""
    no_memory = isinstance(error, MemoryError) or "Memory allocation" in str(error)
    return TooLargeError(TOO_HEAVY) if no_memory else otherwise


def _factor(image: Image.Image, at_least: int) -> int:
    return max(1, min(image.size) // at_least)


def _scale(image: Image.Image, at_least: int = 2 * RESIZE) -> int:
    """Return the factor by which a JPEG's decoder reduces it, 1, 2, 4 or 8; 1 for other formats."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 1
    return min(8, 1 << (_factor(image, at_least).bit_length() - 1))


def decode(image: Image.Image, at_least: int) -> Image.Image:
    """Decode an opened image into upright 8-bit RGB; of several pictures, the first or primary one.

    Reduces it by the largest whole number that leaves each side `at_least` pixels, to save memory.
    Raises ImageError if the pixels can't be decoded.
    """
    try:
        image.draft(image.mode, (at_least, at_least))  # a JPEG's decoder reduces it
        image.load()
        if image.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
            image.putalpha(255)  # many programs write 0 as the alpha of opaque pixels
        return _upright(_reduced(image, _factor(image, at_least)), image)
    except Exception as error:  # on damaged pixels Pillow's decoders raise almost any type
        raise _explain(error, DamagedImageError(not_images.DAMAGED)) from error


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """Convert to RGB and average squares of factor×factor pixels, strip by strip.

    Converting a large picture at once would take several times its memory.
    """
    if factor == 1 and _is_rgb(image):
        return image
    whole = Image.new("RGB", (image.width // factor, image.height // factor))
    rows = factor * max(1, STRIP_PIXELS // (whole.width * factor**2))
    for top in range(0, whole.height * factor, rows):
        bottom = min(top + rows, whole.height * factor)
        strip = image.crop((0, top, whole.width * factor, bottom))
        whole.paste(_to_rgb(strip).reduce(factor), (0, top // factor))
    return whole


def _upright(rgb: Image.Image, original: Image.Image) -> Image.Image:
    with suppress(Exception):  # of an unreadable EXIF block
        rgb.getexif()[ORIENTATION] = original.getexif().get(ORIENTATION, 1)
        ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def _is_rgb(image: Image.Image) -> bool:
    return image.mode == "RGB" and not image.has_transparency_data


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; transparent pixels become white."""
    if _is_rgb(image):
        return image
    if image.mode in GREY_16:  # Pillow would clip the levels
        levels, transparent = np.asarray(image), image.info.get("transparency")
        grey = np.where(levels == transparent, 255, np.rint(levels / 257))
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def to_array(image: Image.Image) -> Photo:
    """Turn an opened image into the network's input, 224×224×3 uint8 RGB.

    The shorter side becomes 256 pixels by antialiased bilinear resizing, then the middle 224×224
    are cut out. Only those are computed, so that a picture of 1×50,000 pixels stays cheap.
    Raises ImageError.
    """
    whole = image.size
    rgb = decode(image, 2 * RESIZE)  # twice the target: no visible loss
    if (rgb.width < rgb.height) != (whole[0] < whole[1]):
        whole = whole[::-1]  # EXIF turned it
    factor = round(whole[0] / rgb.width)  # of the reduction, which may cut off the last column
    width, height = (RESIZE * side // min(whole) for side in whole)
    left, top = round((width - CROP) / 2), round((height - CROP) / 2)
    across, down = whole[0] / factor / width, whole[1] / factor / height  # pixels per target pixel
    box = (left * across, top * down, (left + CROP) * across, (top + CROP) * down)
    return np.asarray(rgb.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box))


def data_url(pixels: NDArray[np.uint8]) -> str:
    """Return H×W×3 uint8 pixels as the data URL of a JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def read(data: bytes, max_pixels: int = MAX_PIXELS) -> Photo:
    """Turn an encoded image into the network's input, 224×224×3 uint8 RGB. Raises ImageError."""
    try:
        return to_array(identify(data, max_pixels))
    except (DamagedImageError, TooLargeError) as error:
        if not_images.is_mangled(data):
            raise BadImageError(not_images.MANGLED) from error
        raise
