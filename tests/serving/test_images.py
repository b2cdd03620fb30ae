"""Every format that people send becomes the same array; everything else is rejected by name."""

import io
import re
import struct
import subprocess
import sys
import zlib

import hostile
import numpy as np
import pillow_heif
import pytest
from helpers import encode
from PIL import Image, ImageCms, ImageOps
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
        ("PPM", {}),
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
    return png_file((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))))


def png_file(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
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
        ("HEIF", {"quality": 95}),
        ("HEIF", {"quality": 95, "chroma": 444}),
    ],
)
def test_lossy_formats_are_read_closely(scene, kind, options):
    assert difference(encode(scene, kind, **options), scene) < 4


@pytest.mark.parametrize("kind", ["JPEG", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(scene, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.open(io.BytesIO(encode(scene, "PNG", exif=exif)))
    data = encode(scene, kind, quality=95, exif=exif.tobytes())
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


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heif_is_read_under_each_of_its_names(scene, brand):
    data = encode(scene, "HEIF", quality=95)
    assert difference(data[:8] + brand + data[12:], scene) < 4


def test_avif_is_read_under_the_name_that_it_shares_with_heif(scene):
    data = encode(scene, "AVIF", quality=95)
    assert difference(data[:8] + b"mif1" + data[12:], scene) < 4


def test_of_a_heic_with_several_pictures_the_primary_is_read():
    several = pillow_heif.HeifFile()
    for colour in ("red", "blue", "red"):
        several.add_from_pillow(Image.new("RGB", (300, 300), colour))
    file = io.BytesIO()
    several.save(file, primary_index=1)
    assert images.read(file.getvalue()).mean((0, 1)) == pytest.approx([0, 0, 255], abs=3)


def test_no_heic_is_written_and_nothing_but_what_is_read_is_registered():
    ask = (
        "from simplestack.serving import images, kinds; from PIL import Image;"
        "print(*(set(Image.OPEN) - set(kinds.FORMATS)), 'HEIF' in Image.SAVE)"
    )
    result = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) == {"DIB", "False"}  # a part of BMP


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
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


def bitmap(pixels: np.ndarray, masks: tuple[int, ...]) -> bytes:
    """Encode H×W×4 BGRA as a bitmap that says where its alpha is, as Pillow can't."""
    height, width, _ = pixels.shape
    head = struct.pack("<IiiHHIIiiII", 108, width, -height, 1, 32, 3, 0, 0, 0, 0, 0)
    head += struct.pack("<4I", *masks).ljust(108 - len(head), b"\0")
    return struct.pack("<2sIII", b"BM", 122 + pixels.nbytes, 0, 122) + head + pixels.tobytes()


BGRA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


@pytest.mark.parametrize("masks", [BGRA, (0, 0, 0, 0)])
@pytest.mark.parametrize("alpha", [0, 255])
def test_a_bitmap_whose_alpha_is_empty_or_full_is_opaque(masks, alpha):
    data = bitmap(np.full((300, 300, 4), (50, 100, 200, alpha), np.uint8), masks)
    assert Image.open(io.BytesIO(data)).mode == "RGBA"
    assert images.read(data).mean((0, 1)) == pytest.approx([200, 100, 50])


def test_a_bitmap_with_some_alpha_is_laid_on_white():
    pixels = np.zeros((300, 300, 4), np.uint8)
    pixels[0, 0, 3] = 255
    assert images.read(bitmap(pixels, BGRA)).min() == 255


def grey_png(levels: np.ndarray, bits: int, transparent: int) -> bytes:
    """Encode H×W levels of so many bits as a grey PNG with a transparent level, as Pillow can't."""
    height, width = levels.shape
    single = np.unpackbits(levels.astype(">u2").view(np.uint8), axis=1).reshape(height, width, 16)
    rows = np.packbits(single[:, :, 16 - bits :].reshape(height, -1), axis=1)
    return png_file(
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", transparent)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("step", [0, 1])
def test_a_transparent_level_of_grey_is_white_at_any_depth(bits, step):
    levels = np.zeros((300, 300), int)
    levels[:, 150:] = 2**bits - 1
    transparent = step * (2**bits - 1)
    array = images.read(grey_png(levels, bits, transparent))
    assert array[:, -50:].min() == 255
    assert array[:, :50].max() == (0 if step else 255)


def test_a_transparent_colour_of_16_bits_is_white():
    pixels = np.full((300, 300, 3), (0x1234, 0x5678, 0x9ABC), np.uint16)
    data = png(pixels, interlaced=False)
    clear = png_file((b"tRNS", struct.pack(">HHH", *pixels[0, 0])))[8:-12]
    assert images.read(data).max() < 200
    assert images.read(data[:33] + clear + data[33:]).min() == 255


RAMP = np.linspace(0, 1, 400) * np.ones((300, 1))


@pytest.mark.parametrize(
    ("kind", "white"),
    [
        *(("f4", 1), ("f4", 255), ("f4", 4095), ("f4", 65535)),
        *(("i4", 255), ("i4", 4095), ("i4", 65535), ("u2", 255), ("u2", 4095), ("u2", 65535)),
        ("u4", 255),
        *((">u2", 65535), (">u2", 4095), ("i2", 255), ("i2", 32767), (">f4", 1), (">i4", 255)),
    ],
)
def test_deep_grey_is_scaled_by_what_its_white_is(kind, white):
    expected = Image.fromarray(np.rint(RAMP * 255).astype(np.uint8))
    assert difference(deep_tiff(RAMP * white, kind), expected) < 1


def deep_tiff(levels: np.ndarray, kind: str, *, inverted: bool = False) -> bytes:
    """Encode H×W levels as a TIFF with samples of that type."""
    data = levels.astype(kind)
    values = {258: 8 * data.itemsize, 259: 1, 262: int(not inverted)}
    values[339] = {"u": 1, "i": 2, "f": 3}[data.dtype.kind]
    order = ">" if kind[0] == ">" else "<"
    tags = {tag: (4, 1, struct.pack(f"{order}I", value)) for tag, value in values.items()}
    return hostile.tiff(*levels.shape[::-1], data=data.tobytes(), tags=tags, order=order)


@pytest.mark.parametrize("kind", ["u2", "f4"])
def test_deep_grey_with_black_and_white_exchanged_is_read_so(kind):
    expected = Image.fromarray(np.rint((1 - RAMP) * 255).astype(np.uint8))
    data = deep_tiff(RAMP * 65535, kind, inverted=True)
    assert difference(data, expected) < 1


@pytest.mark.parametrize(
    "levels",
    [
        2 * RAMP - 1,
        7 * RAMP,
        1e6 * RAMP,
        np.full((300, 400), np.nan),
        np.where(RAMP < 0.5, -1e9, 0),
    ],
    ids=["negative", "dark", "bright", "none", "far"],
)
def test_deep_grey_without_a_known_white_is_rejected_and_never_black(levels):
    with pytest.raises(images.BadImageError, match=r"^The picture's levels go from .* to .*$"):
        images.read(deep_tiff(levels, "f4"))


def test_gaps_in_floats_are_black():
    levels = np.where(RAMP < 0.5, np.nan, RAMP)
    levels[0, 0] = 0
    assert images.read(deep_tiff(levels, "f4"))[:, :50].max() == 0


@pytest.mark.parametrize("kind", ["f8", "u8", "f2"])
def test_samples_that_cant_be_read_are_rejected(kind):
    with pytest.raises(images.BadImageError, match=r"This TIFF file can.t be read: .* rare kind"):
        images.read(deep_tiff(255 * RAMP, kind))


@pytest.mark.parametrize("maximum", [255, 1023, 65535])
def test_a_portable_graymap_of_any_depth_is_read(scene, maximum):
    grey = scene.convert("L")
    levels = np.rint(np.asarray(grey) * (maximum / 255)).astype(">u2" if maximum > 255 else "u1")
    data = b"P5 %d %d %d\n" % (*grey.size, maximum) + levels.tobytes()
    assert difference(data, grey) < 1


def test_a_portable_floatmap_is_read(scene):
    levels = np.asarray(scene.convert("L"), "<f4")[::-1] / 255
    data = b"Pf\n%d %d\n-1.0\n" % scene.size + levels.tobytes()
    assert difference(data, scene.convert("L")) < 1


@pytest.mark.parametrize("mode", ["LAB", "YCbCr", "PA", "LA", "1"])
def test_every_mode_of_tiff_becomes_rgb(scene, mode):
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image, expected = ImageCms.profileToProfile(scene, *profiles, outputMode="LAB"), scene
    else:
        image = scene.convert("P").convert("PA") if mode == "PA" else scene.convert(mode)
        expected = image.convert("RGB")
    assert difference(encode(image, "TIFF"), expected) < 2


def test_grey_with_multiplied_alpha_is_read(scene):
    grey = np.asarray(scene.convert("L"))
    samples = np.stack([grey, np.full_like(grey, 255)], axis=2)
    tags = {258: (3, 2, struct.pack("<HH", 8, 8)), 259: (3, 1, struct.pack("<H", 1))}
    tags |= {277: (3, 1, struct.pack("<H", 2)), 338: (3, 1, struct.pack("<H", 1))}
    data = hostile.tiff(*scene.size, data=samples.tobytes(), tags=tags)
    assert Image.open(io.BytesIO(data)).mode == "La"
    assert difference(data, scene.convert("L")) < 1


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("size", [3_000_000, 100_000_000])
@pytest.mark.parametrize("before", [True, False])
def test_a_png_with_much_text_is_read_or_rejected_for_it(scene, kind, size, before):
    text = bytes(size) if kind == b"tEXt" else zlib.compress(bytes(size))
    head = {b"iTXt": b"a\0\1\0\0\0", b"tEXt": b"a\0"}.get(kind, b"a\0\0")
    chunk = png_file((kind, head + text))[8:-12]
    data = encode(scene, "PNG")
    data = data[:33] + chunk + data[33:] if before else data[:-12] + chunk + data[-12:]
    if size < 10_000_000:
        assert difference(data, scene) == 0
    else:
        with pytest.raises(images.TooHeavyError, match="too much text"):
            images.read(data)


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


KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "PPM")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_image_is_rejected_in_plain_words(scene, kind, share):
    data = encode(scene, kind)
    plain = (
        r"The image is damaged or cut off: use an undamaged file\.|This \w+ file can't be read: it"
        r" is damaged or cut off, or of a rare kind\. Save it anew, as a JPEG or PNG\."
    )
    with pytest.raises(images.BadImageError) as caught:
        images.read(data[: int(share * len(data))])
    assert re.fullmatch(plain, str(caught.value))


def test_a_jpeg_counts_as_its_decoder_reduces_it(scene):
    large = encode(scene.resize((4000, 3000)), "JPEG")
    assert images.identify(large, max_pixels=800_000).size == (4000, 3000)
    with pytest.raises(images.TooManyPixelsError, match="4000×3000"):
        images.identify(large, max_pixels=700_000)
    with pytest.raises(images.TooManyPixelsError, match="4000×3000"):
        images.identify(encode(scene.resize((4000, 3000)), "PNG"), max_pixels=800_000)


@pytest.mark.parametrize(
    "data", [b"", b"junk", b"http://localhost/x.jpg", b'{"a": 1}', b"\xff\xd8"]
)
def test_what_is_no_image_is_rejected(data):
    with pytest.raises(images.BadImageError):
        images.read(data)
