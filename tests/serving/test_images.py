"""Every format becomes the same array; large and rare kinds of pictures are rejected."""

import io
import itertools
import struct
import zlib
from unittest.mock import Mock

import hostile
import numpy as np
import pillow_heif
import pytest
from helpers import encode
from PIL import AvifImagePlugin, Image, ImageOps
from torchvision.transforms import v2

from simplestack.serving import images
from simplestack.serving.formats import FORMATS

FINE = {"quality": 95}


@pytest.fixture(scope="module")
def scene():
    """A picture with four different corners."""
    rows, columns = np.mgrid[0:300, 0:400]
    channels = (columns * 255 / 399, rows * 255 / 299, (rows + columns) % 97 * 2)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def difference(data, reference):
    """Mean absolute difference to a reference picture, in levels of 255."""
    expected = images.read(encode(reference.convert("RGB"), "PPM"))
    return float(np.abs(images.read(data).astype(int) - expected).mean())


# What the network sees: 224×224 from the middle of 256


@pytest.mark.parametrize(
    "size", [(300, 401), (256, 256), (97, 500), (1, 1), (5, 2000), (1023, 1100), (1100, 1023)]
)
def test_array_equals_torchvisions_resize_and_centre_crop(size):
    array = images.read(encode(noise(*size), "PPM"))
    seen = np.asarray(v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(noise(*size)), dtype=int)
    assert (array.shape, array.dtype) == ((224, 224, 3), np.uint8)
    assert np.abs(array - seen).max() <= 1


def middle(image, sides=None):
    """Resize the shorter side of a picture to 256; return the middle 224×224."""
    sides = sides or image.size
    target = [int(256 * side // min(sides)) for side in sides]
    left, top = (round((side - 224) / 2) for side in target)
    small = image.resize(target, Image.Resampling.BILINEAR, (0, 0, *sides))
    return np.asarray(small.crop((left, top, left + 224, top + 224)), dtype=int)


@pytest.mark.parametrize(("size", "factor"), [((1534, 1026), 2), ((1536, 2049), 3)])
def test_a_large_picture_is_averaged_by_a_whole_number_first(size, factor):
    large = noise(*size)
    small = large.crop((0, 0, *(side // factor * factor for side in size))).reduce(factor)
    expected = middle(small, [side / factor for side in size])
    assert np.abs(images.read(encode(large, "PPM")) - expected).max() <= 1


@pytest.mark.parametrize(
    ("kind", "mode", "size", "orientation"),
    [
        *(("JPEG", "RGB", size, 1) for size in ((2063, 1031), (1535, 3001))),
        ("JPEG", "RGB", (2064, 1032), 6),
        ("PPM", "RGB", (1151, 1601), 1),
        ("PNG", "RGB", (1064, 1032), 6),  # not reduced by its decoder
        *(("PNG", mode, (1400, 1100), 1) for mode in ("L", "P", "LA")),
        ("TIFF", "CMYK", (1400, 1100), 1),
    ],
)
def test_a_large_picture_is_cropped_like_at_full_size(kind, mode, size, orientation):
    large = noise(*(side // 30 for side in size)).resize(size, Image.Resampling.BICUBIC)
    options = FINE if kind == "JPEG" else {}
    data = encode(large.convert(mode), kind, exif=turned(orientation), **options)
    expected = middle(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.abs(images.read(data) - expected).mean() < 1


# Formats and modes


UNREADABLE_EXIF = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40
CLOSE = ("JPEG", {}), ("JPEG", {"progressive": True}), ("MPO", {}), ("WEBP", {}), ("AVIF", {})


@pytest.mark.parametrize(
    ("kind", "mode", "options", "most"),
    [
        *((kind, "RGB", {}, 0) for kind in ("PNG", "BMP", "TIFF", "PPM")),
        *((kind, "RGB", FINE | options, 3.9) for kind, options in CLOSE),
        *(("WEBP", "RGB", {"lossless": True}, 0), ("JPEG", "CMYK", FINE, 5.9)),
        *(("HEIF", "RGB", FINE, 3.9), ("HEIF", "RGB", {**FINE, "chroma": 444}, 3.9)),
        *(("PNG", mode, {}, 0.9) for mode in ("L", "1", "P", "LA")),
        *(("TIFF", mode, {}, 0.9) for mode in ("CMYK", "1", "LA", "PA", "YCbCr")),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}, 0),
        ("JPEG", "RGB", {**FINE, "exif": UNREADABLE_EXIF}, 3.9),
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_every_format_and_mode_becomes_rgb(scene, kind, mode, options, most):
    image = (scene.convert("P") if mode == "PA" else scene).convert(mode)
    assert difference(encode(image, kind, **options), image) <= most


def test_a_png_of_16_bits_is_read_exactly(scene):
    rows = (np.asarray(scene, int) * 257).astype(">u2")
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    assert difference(hostile.png(*scene.size, 2, bits=16, data=data), scene) == 0


@pytest.mark.parametrize(
    ("kind", "orientations"),
    [("JPEG", range(1, 9)), *((x, (2, 6)) for x in ("HEIF", "PNG", "WEBP", "TIFF", "AVIF"))],
)
def test_exif_orientation_is_applied_once(scene, kind, orientations):
    for orientation in orientations:
        exif = turned(orientation)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encode(scene, "PNG", exif=exif))))
        options = {} if kind in {"PNG", "TIFF"} else FINE
        assert difference(encode(scene, kind, exif=exif.tobytes(), **options), upright) < 4


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_heif_and_avif_are_read_under_their_common_brand(scene, kind):
    data = encode(scene, kind, **FINE)
    assert difference(data[:8] + b"mif1" + data[12:], scene) < 4


@pytest.mark.parametrize(("mode", "bits"), [("I;16", 12), ("RGB;16", 10), ("RGBA;16", 12)])
def test_a_deep_heic_is_read(scene, monkeypatch, mode, bits):
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    expected = scene.convert(mode.partition(";")[0].replace("I", "L"))
    levels = np.asarray(expected, dtype=np.uint16) * 257
    file = io.BytesIO()
    deep = pillow_heif.from_bytes(mode, scene.size, levels.tobytes())
    deep.save(file, enc_params={"preset": "ultrafast"}, **FINE)
    assert images.identify(file.getvalue()).info["bit_depth"] == bits
    assert difference(file.getvalue(), expected) < 4


@pytest.mark.parametrize("primary", [0, 2])
def test_of_a_heic_with_several_pictures_the_primary_is_read(primary):
    several, file = pillow_heif.HeifFile(), io.BytesIO()
    for i in range(3):
        colour = "blue" if i == primary else "red"
        several.add_from_pillow(Image.new("RGB", (300, 300), colour))
    several.save(file, primary_index=primary)
    assert images.read(file.getvalue()).mean((0, 1)) == pytest.approx([0, 0, 255], abs=3)


def test_no_heic_is_written_and_one_thread_decodes_nothing_but_the_picture():
    assert "HEIF" in Image.OPEN
    assert "HEIF" not in {*Image.SAVE, *Image.SAVE_ALL}
    heif = pillow_heif.options
    assert AvifImagePlugin.DEFAULT_MAX_THREADS == heif.DECODE_THREADS == 1
    assert [heif.THUMBNAILS, heif.DEPTH_IMAGES, heif.AUX_IMAGES] == [False] * 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation_is_read(kind):
    red, blue = (Image.new("RGB", (300, 300), colour) for colour in ("red", "blue"))
    data = encode(red, kind, save_all=True, append_images=[blue])
    assert images.read(data).mean((0, 1)).round()[[0, 2]] == pytest.approx([255, 0], abs=2)


# Transparency


@pytest.mark.parametrize(
    ("kind", "alpha"),
    [("PNG", 0), ("PNG", 255), *((k, 100) for k in ("PNG", "WEBP", "TIFF", "AVIF", "HEIF"))],
)
def test_transparent_pixels_are_blended_with_white(kind, alpha):
    image = Image.new("RGBA", (300, 300), (50, 50, 50, alpha))
    levels = images.read(encode(image, kind, **({"quality": 100} if kind == "HEIF" else {})))
    expected = 255 - alpha / 255 * 205
    assert [levels.min(), levels.max()] == pytest.approx([expected] * 2, abs=2 if alpha else 1)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entries_are_white(kind):
    image = Image.new("P", (300, 300), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert images.read(encode(image, kind, transparency=0)).min() == 255


@pytest.mark.parametrize(("alpha", "corner", "seen"), [(0, 0, 50), (255, 255, 50), (0, 255, 255)])
@pytest.mark.parametrize("masks", [(0xFF0000, 0xFF00, 0xFF, 0xFF000000), (0, 0, 0, 0)])
def test_a_bitmap_is_blended_with_white_unless_all_its_alpha_is_0(masks, alpha, corner, seen):
    pixels = np.full((300, 300, 4), (50, 50, 50, alpha), np.uint8)
    pixels[0, 0, 3] = corner
    head = struct.pack("<IiiHHIIiiII4I", 108, 300, -300, 1, 32, 3, 0, 0, 0, 0, 0, *masks)
    head = struct.pack("<2sIII", b"BM", 122 + pixels.nbytes, 0, 122) + head.ljust(108, b"\0")
    assert Image.open(io.BytesIO(head + pixels.tobytes())).mode == "RGBA"
    assert (images.read(head + pixels.tobytes()) == seen).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("white", [False, True])
def test_a_transparent_level_of_grey_is_white_at_any_depth(bits, white):
    row = bytes(1 + 20 * bits) + b"\xff" * (20 * bits)  # half black, half white
    clear = hostile.chunk(b"tRNS", struct.pack(">H", white * (2**bits - 1)))
    array = images.read(hostile.png(320, 300, 0, clear, bits=bits, data=row * 300))
    assert (array[:, :50].max(), array[:, -50:].min()) == (0 if white else 255, 255)


def tiff(pixels, tag=0, before=0, after=0):
    """Encode pixels as a TIFF with a changed tag."""
    values = (struct.pack("<HHIH", tag, 3, 1, value) for value in (before, after))
    return encode(Image.fromarray(pixels), "TIFF").replace(*values)


def test_grey_with_multiplied_alpha_is_read(scene):
    grey = np.asarray(scene.convert("L"))
    data = tiff(np.stack([grey, np.full_like(grey, 255)], axis=2), 338, 2, 1)
    assert Image.open(io.BytesIO(data)).mode == "La"
    assert difference(data, scene.convert("L")) < 1


# Grey with more than 8 bits

RAMP = np.linspace(0, 65535, 400) * np.ones((300, 1))


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_grey_of_16_bits_is_scaled(kind):
    levels = np.rint(RAMP / 257).astype(np.uint8)  # not truncated
    assert difference(tiff(RAMP.astype(kind)), Image.fromarray(levels)) < 0.1


@pytest.mark.parametrize(
    "data",
    [
        tiff(RAMP.astype("f4")),
        tiff(RAMP.astype("i4")),
        tiff(RAMP.astype("u2"), 258, 16, 12),  # bits
        tiff(RAMP.astype("u2"), 262, 1, 0),  # inverted
        b"P5 2 1 1023 " + bytes(4),
        b"Pf\n2 1\n-1.0\n" + bytes(8),
    ],
    ids=itertools.count(),
)
def test_other_deep_grey_is_rejected_with_the_remedy(data):
    with pytest.raises(images.BadImageError, match="save the picture as a JPEG or PNG"):
        images.identify(data)


# What is rejected


@pytest.mark.parametrize(
    ("kind", "head", "at"),
    [  # before the pixels or behind them
        (b"zTXt", b"a\0\0", 33),
        (b"iTXt", b"a\0\1\0\0\0", -12),
        (b"iCCP", b"a\0\0", 33),
    ],
)
def test_a_png_with_16_mib_of_text_is_read_and_with_more_rejected(scene, kind, head, at):
    data = encode(scene, "PNG")
    texts = (zlib.compress(bytes(size), 1) for size in (2**24 - 9, 2**24 + 1))
    accepted, rejected = (data[:at] + hostile.chunk(kind, head + t) + data[at:] for t in texts)
    assert difference(accepted, scene) == 0
    with pytest.raises(images.DamagedImageError):
        images.read(rejected)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MemoryError(), images.TooLargeError, "too much memory or time to decode: "),
        (RuntimeError("Memory allocation error: 5"), images.TooLargeError, "too much memory"),
        (ValueError("a bug"), images.BadImageError, "damaged or cut off"),
    ],
)
def test_an_error_of_pillow_becomes_a_sentence_for_users(monkeypatch, error, kind, words):
    opened = images.identify(jpeg(64, 64))
    monkeypatch.setattr(opened, "load", Mock(side_effect=error))
    monkeypatch.setattr(Image, "open", Mock(side_effect=error))
    for read in (lambda: images.identify(b"\xff\xd8\xff\0"), lambda: images.decode(opened, 1)):
        with pytest.raises(kind, match=words):
            read()


def test_64_million_pixels_are_read_unless_set_otherwise():
    assert images.identify(hostile.png(8000, 8000, 2, data=b"")).size == (8000, 8000)
    with pytest.raises(images.TooLargeError) as raised:
        images.read(hostile.png(8000, 8001, 2, data=b""))
    sentence = "The picture has 8000×8001 pixels, more than the 64 million that are read: use a"
    assert str(raised.value) == f"{sentence} smaller one."


def jpeg(width, height):
    """Return a JPEG with a wrong size in its header."""
    data = encode(Image.new("RGB", (64, 64)), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def png(width, height):
    return hostile.png(width, height, 2, data=b"")


@pytest.mark.parametrize(
    ("make", "size", "factor"),
    [
        (png, (40, 30), 1),
        (png, (20_000, 20_000), 1),
        (jpeg, (1023, 2000), 1),
        (jpeg, (1024, 1024), 2),
        (jpeg, (4000, 3000), 4),
        (jpeg, (4096, 5000), 8),
        (jpeg, (20_000, 20_000), 8),
    ],
)
def test_a_picture_counts_as_its_decoder_reduces_it(make, size, factor):
    counted = size[0] * size[1] / factor**2
    assert images.identify(make(*size), int(counted)).size == size
    with pytest.raises(images.TooLargeError, match=f"{size[0]}×{size[1]}"):
        images.identify(make(*size), int(counted) - 1)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_image_is_rejected_in_plain_words(scene, kind):
    data = encode(scene, kind)
    words = r"^(The image is damaged or cut off, .*|This \w+ file can.t be read: .*)$"
    for share in (0.1, 0.9):
        with pytest.raises(images.BadImageError, match=words):
            images.read(data[: int(share * len(data))])
