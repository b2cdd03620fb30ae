"""The one path from the bytes of a photo to the array that the network sees.

Validation, calibration, packing and serving all use it, so that they can't differ.
Needs Pillow, pillow-heif and NumPy only: the served image has no torch in it.
"""

import io

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
CROP = 224  # pixels, the square that the network sees
MAX_PIXELS = 64_000_000  # after a JPEG's decoder has reduced it

# Pillow loads some formats only when it meets them, and then all it knows, forty more. Not here.
Image.preinit()
LOADED = (AvifImagePlugin, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the default, one per host core, multiplies memory
pillow_heif.register_heif_opener(
    decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
)
for writers in (Image.SAVE, Image.SAVE_ALL):  # nothing is written as HEIC
    writers.pop("HEIF", None)  # there is none where libheif was built without an encoder
# Some tools put megabytes of settings into a PNG.
PngImagePlugin.MAX_TEXT_CHUNK = 2**24

# Pillow's own limit only warns, and is one for the whole process; `identify` refuses instead.
Image.MAX_IMAGE_PIXELS = None

STRIP = 2**18  # pixels that are converted at once
TOO_HEAVY = "The picture needs too much memory or time to decode: use a smaller one."
TOO_MUCH_TEXT = "The picture has too much text or too large a profile in it: save it without them."
ORIENTATION = 0x0112  # in EXIF
GREY_16 = {"I;16", "I;16B"}  # modes of Pillow
DEEP_GREY = "This kind of deep grey isn't read: save the picture as a JPEG or PNG."

Photo = NDArray[np.uint8]
"""CROP×CROP×3 uint8, RGB."""


def identify(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the header of an encoded image, without decoding its pixels. Raises ImageError."""
    if not data:
        raise BadImageError(not_images.EMPTY)
    if not_images.is_text(data):
        raise not_images.refusal(data)
    try:
        image = Image.open(io.BytesIO(data), formats=[*FORMATS])
    except Exception as error:  # on damaged headers Pillow's parsers raise almost any type
        raise _explain(error, not_images.refusal(data)) from error
    if _is_other_deep_grey(image):
        raise BadImageError(DEEP_GREY)
    if image.width * image.height > max_pixels * _scale(image) ** 2:
        size = {"width": image.width, "height": image.height, "million": f"{max_pixels / 1e6:g}"}
        raise TooLargeError(not_images.TOO_MANY_PIXELS.format_map(size))
    return image


def _is_other_deep_grey(image: Image.Image) -> bool:
    """Return whether an image has more than 8 bits of grey, but not 0 for black to 65535."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    other_bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,)) != (16,)
    return image.mode in {"I", "F"} or (image.mode in GREY_16 and (inverted or other_bits))


def _explain(error: Exception, otherwise: ImageError) -> ImageError:
    """Return the error to show for one of Pillow, whose own messages don't help users."""
    if isinstance(error, ImageError):
        return error
    if isinstance(error, MemoryError) or "Memory allocation" in str(error):
        return TooLargeError(TOO_HEAVY)
    return TooLargeError(TOO_MUCH_TEXT) if "MAX_TEXT" in str(error) else otherwise


def _factor(image: Image.Image, at_least: int) -> int:
    return max(1, min(image.size) // at_least)


def _scale(image: Image.Image, at_least: int = 2 * RESIZE) -> int:
    """Return by what the decoder of a JPEG reduces it: 1, 2, 4 or 8; 1 for other formats."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 1
    return min(8, 1 << (_factor(image, at_least).bit_length() - 1))


def decode(image: Image.Image, at_least: int) -> Image.Image:
    """Decode an opened image into upright 8-bit RGB; of several pictures, the first or primary one.

    A picture with sides of twice `at_least` pixels or more is reduced by a whole number, as long as
    its sides keep so many. Raises ImageError if the pixels can't be decoded.
    """
    try:
        image.draft(image.mode, (at_least, at_least))  # JPEGs come reduced from their decoder
        image.load()
        if image.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
            image.putalpha(255)  # many programs leave those bytes 0
        return _upright(_reduced(image, _factor(image, at_least)), image)
    except Exception as error:  # on damaged pixels Pillow's decoders raise almost any type
        raise _explain(error, DamagedImageError(not_images.DAMAGED)) from error


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
        whole.paste(_to_rgb(strip).reduce(factor), (0, top // factor))
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


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; what is transparent becomes white."""
    if _is_rgb(image):
        return image
    if image.mode in GREY_16:  # which Pillow would clip
        levels, transparent = np.asarray(image), image.info.get("transparency")
        grey = np.where(levels == transparent, 255, np.rint(levels / 257))
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
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
