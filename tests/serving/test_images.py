"""Every format that people send becomes the same array; everything else is rejected by name."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from helpers import encode
from PIL import Image, ImageOps
from torchvision.transforms import v2

from simplestack.serving import images


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """A picture whose every corner looks different."""
    rows, columns = np.mgrid[0:300, 0:400]
    channels = (columns * 255 / 399, rows * 255 / 299, (rows + columns) % 97 * 2)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def difference(data: bytes, reference: Image.Image) -> float:
    """Mean absolute difference to a reference picture, in levels of 255."""
    expected = images.read(encode(reference.convert("RGB"), "PNG"))
    return float(np.abs(images.read(data).astype(int) - expected).mean())


@pytest.mark.parametrize("size", [(400, 300), (300, 401), (256, 256), (97, 500), (1, 1), (5, 2000)])
def test_array_equals_torchvisions_resize_and_centre_crop(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    reference = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(image)
    array = images.read(encode(image, "PNG")).astype(int)
    assert np.abs(array - np.asarray(reference)).max() <= 1


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_are_read_exactly(scene, kind, options):
    assert difference(encode(scene, kind, **options), scene) == 0


ADAM7 = (  # first column and row, steps between columns and rows
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)


def png(pixels: np.ndarray, *, interlaced: bool) -> bytes:
    """Encode H×W×3 pixels of 8 or 16 bits, as Pillow can't."""
    height, width, _ = pixels.shape
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [pixels[y::down, x::across] for x, y, across, down in passes]
    rows = [
        b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for p in parts for row in p
    ]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, 2, 0, 0, interlaced)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("interlaced", [False, True])
def test_png_of_any_depth_is_read_exactly_interlaced_or_not(scene, bits, interlaced):
    pixels = np.asarray(scene)
    if bits == 16:
        pixels = pixels.astype(np.uint16) * 257
    assert difference(png(pixels, interlaced=interlaced), scene) == 0


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("MPO", {"quality": 95}),
        ("WEBP", {"quality": 95}),
        ("AVIF", {"quality": 95}),
    ],
)
def test_lossy_formats_are_read_closely(scene, kind, options):
    assert difference(encode(scene, kind, **options), scene) < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(scene, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.open(io.BytesIO(encode(scene, "PNG", exif=exif)))
    data = encode(scene, "JPEG", quality=95, exif=exif)
    assert difference(data, ImageOps.exif_transpose(turned)) < 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_is_ignored(scene):
    data = encode(scene, "JPEG", quality=95, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40)
    assert difference(data, scene) < 4


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "I;16"])
def test_every_mode_becomes_rgb(scene, mode):
    if mode == "I;16":
        grey = np.asarray(scene.convert("L"), dtype=np.uint16)
        image, expected = Image.fromarray(grey * 257), scene.convert("L")
    else:
        image = expected = scene.convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert difference(encode(image, kind), expected.convert("RGB")) < 1


def test_cmyk_jpeg_has_its_colours(scene):
    assert difference(encode(scene.convert("CMYK"), "JPEG", quality=95), scene) < 6


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_transparent_parts_are_white(kind):
    clear = Image.new("RGBA", (300, 300), (0, 0, 0, 0))
    assert images.read(encode(clear, kind)).min() >= 254


def test_transparent_palette_entries_are_white():
    image = Image.new("P", (300, 300), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert images.read(encode(image, "PNG", transparency=0)).min() == 255


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation_is_read(kind):
    red, blue = (Image.new("RGB", (300, 300), colour) for colour in ("red", "blue"))
    data = encode(red, kind, save_all=True, append_images=[blue])
    assert images.read(data).mean((0, 1)).round()[[0, 2]] == pytest.approx([255, 0], abs=2)


def test_large_jpeg_is_read_as_at_full_size():
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    large = Image.fromarray(noise).resize((3000, 4000), Image.Resampling.BICUBIC)
    data = encode(large, "JPEG", quality=95)
    full = encode(Image.open(io.BytesIO(data)), "PNG", compress_level=1)
    assert np.abs(images.read(data).astype(int) - images.read(full)).mean() < 1.5


@pytest.mark.parametrize("size", [(4123, 3087), (3087, 4123), (2063, 1031), (1535, 5001)])
def test_large_jpeg_is_cut_where_it_is_at_full_size(size):
    x, y = np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1])[:, None]
    waves = np.stack([127 + 127 * np.sin(f * (x + y)) for f in (0.3, 0.5, 0.7)], axis=2)
    data = encode(Image.fromarray(waves.astype(np.uint8)), "JPEG", quality=95)
    factor = images.RESIZE / min(size)
    whole = Image.open(io.BytesIO(data))
    small = whole.resize([int(factor * side) for side in size], Image.Resampling.BILINEAR)
    left, top = (round((side - images.CROP) / 2) for side in small.size)
    expected = np.asarray(small.crop((left, top, left + images.CROP, top + images.CROP)))
    assert np.abs(images.read(data).astype(int) - expected).mean() < 1


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
def test_large_picture_of_every_mode_is_read_as_at_full_size(scene, mode):
    large = scene.resize((1700, 1300)).convert(mode)
    full = large.convert("RGB").resize((333, 256), Image.Resampling.BILINEAR)
    array = np.asarray(full.crop((54, 16, 54 + 224, 16 + 224))).astype(int)
    data = encode(large, "TIFF" if mode == "CMYK" else "PNG")
    assert np.abs(images.read(data) - array).mean() < 4


def test_large_picture_takes_the_memory_of_one():
    data = encode(Image.new("RGBA", (7000, 7000)), "PNG", compress_level=1)
    ask = (
        "import resource, sys; from simplestack.serving import images;"
        "data = sys.stdin.buffer.read();"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; images.read(data);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", ask], input=data, stdout=subprocess.PIPE, check=True
    )
    scale = 1024 if sys.platform == "linux" else 1
    assert scale * int(result.stdout) < 1.25 * 4 * 7000**2


def test_narrow_picture_takes_no_memory_to_speak_of():
    assert images.read(encode(Image.new("RGB", (1, 60_000)), "PNG")).shape == (224, 224, 3)


def test_picture_over_the_pixel_limit_is_rejected_by_its_header(scene):
    with pytest.raises(images.TooManyPixelsError, match="400×300"):
        images.identify(encode(scene, "PNG"), max_pixels=100_000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_truncated_image_is_rejected(scene, kind):
    data = encode(scene, kind)
    with pytest.raises(images.BadImageError, match=r"damaged|can be read"):
        images.read(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data", [b"", b"junk", b"http://localhost/x.jpg", b'{"a": 1}', b"\xff\xd8"]
)
def test_what_is_no_image_is_rejected(data):
    with pytest.raises(images.BadImageError):
        images.read(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"%PDF-1.7 ...", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>\n<svg/>", "SVG"),
        (b"\0\0\0\x18ftypmp42....", "video"),
        (b"\0\0\0\x18ftypheic....", "HEIC"),
    ],
)
def test_file_of_another_kind_is_named(data, name):
    with pytest.raises(images.UnsupportedFormatError, match=name):
        images.read(data)
