"""Every format that people send becomes the same array; everything else is rejected by name."""

import asyncio
import io
import re
import struct
import sys
import zlib

import hostile
import numpy as np
import pillow_heif
import pytest
from helpers import encode
from PIL import AvifImagePlugin, Image, ImageCms, ImageOps
from torchvision.transforms import v2

from simplestack.serving import decoder, decoders, images, settings

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps such limits")


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """A picture whose every corner looks different."""
    rows, columns = np.mgrid[0:300, 0:400]
    channels = (columns * 255 / 399, rows * 255 / 299, (rows + columns) % 97 * 2)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def difference(data: bytes, reference: Image.Image) -> float:
    """Mean absolute difference to a reference picture, in levels of 255."""
    expected = images.read(encode(reference.convert("RGB"), "PNG"))
    return float(np.abs(images.read(data).astype(int) - expected).mean())


# What the network sees: 224×224 from the middle of 256


def resized(image: Image.Image) -> np.ndarray:
    """Return what the network sees of a picture by torchvision's transforms."""
    return np.asarray(v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(image), dtype=int)


@pytest.mark.parametrize(
    "size",
    [(400, 300), (300, 401), (256, 256), (97, 500), (1, 1), (5, 2000), (1023, 1100), (1100, 1023)],
)
def test_array_equals_torchvisions_resize_and_centre_crop(size):
    array = images.read(encode(noise(*size), "PPM"))
    assert array.shape == (224, 224, 3)
    assert array.dtype == np.uint8
    assert np.abs(array - resized(noise(*size))).max() <= 1


@pytest.mark.parametrize(
    ("size", "factor"), [((1024, 1024), 2), ((1534, 1026), 2), ((1536, 2049), 3)]
)
def test_a_large_picture_is_averaged_by_a_whole_number_first(size, factor):
    large = noise(*size)
    width, height = (side // factor * factor for side in size)
    small = large.crop((0, 0, width, height)).reduce(factor)
    target = [256 * side // min(size) for side in size]
    whole = small.resize(target, Image.Resampling.BILINEAR, (0, 0, *(s / factor for s in size)))
    left, top = (round((side - 224) / 2) for side in target)
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224)), dtype=int)
    array = images.read(encode(large, "PPM"))
    assert np.abs(array - expected).max() <= 1


def test_large_jpeg_is_read_as_at_full_size():
    large = noise(30, 40).resize((2100, 2800), Image.Resampling.BICUBIC)
    data = encode(large, "JPEG", quality=95)
    full = encode(Image.open(io.BytesIO(data)), "PPM")
    assert np.abs(images.read(data).astype(int) - images.read(full)).mean() < 1.5


@pytest.mark.parametrize(
    ("kind", "size", "orientation"),
    [
        *(("JPEG", (4123, 3087), 1), ("JPEG", (3087, 4123), 1), ("JPEG", (2063, 1031), 1)),
        *(("JPEG", (1535, 5001), 1), ("JPEG", (2064, 1032), 6), ("JPEG", (2064, 4000), 8)),
        ("PPM", (2051, 1601), 1),
    ],
)
def test_a_large_picture_is_cut_where_it_is_at_full_size(kind, size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = noise(*(side // 30 for side in size)).resize(size, Image.Resampling.BICUBIC)
    data = encode(large, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    whole = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    target = [256 * side // min(size) for side in whole.size]
    small = whole.resize(target, Image.Resampling.BILINEAR)
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


# Formats and modes


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
    parts = [hostile.chunk(kind, data) for kind, data in (*chunks, (b"IEND", b""))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_header(width: int, height: int, *, colours: int = 2) -> bytes:
    """Return the beginning of a PNG, without its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    return png_file((b"IHDR", header), (b"IDAT", b""))


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
        ("HEIF", {"quality": 95, "chroma": 422}),
    ],
)
def test_lossy_formats_are_read_closely(scene, kind, options):
    assert difference(encode(scene, kind, **options), scene) < 4


TURNED = (
    *((kind, orientation) for kind in ("JPEG", "HEIF") for orientation in range(1, 9)),
    *((kind, 6) for kind in ("PNG", "WEBP", "TIFF", "AVIF", "MPO")),
)


@pytest.mark.parametrize(("kind", "orientation"), TURNED)
def test_exif_orientation_is_applied_once(scene, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.open(io.BytesIO(encode(scene, "PNG", exif=exif)))
    options = {} if kind in {"PNG", "TIFF"} else {"quality": 95}
    data = encode(scene, kind, exif=exif.tobytes(), **options)
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


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("mode", ["I;16", "RGB;16", "RGBA;16"])
def test_a_deep_heic_is_read(scene, monkeypatch, mode, bits):
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    expected = scene.convert(mode.partition(";")[0].replace("I", "L"))
    levels = np.asarray(expected, dtype=np.uint16) * 257
    deep = pillow_heif.from_bytes(mode, scene.size, levels.tobytes())
    file = io.BytesIO()
    deep.save(file, quality=95, enc_params={"preset": "ultrafast"})
    assert images.identify(file.getvalue()).info["bit_depth"] == bits
    assert difference(file.getvalue(), expected) < 4


def test_a_heic_of_tiles_is_put_together():
    data = hostile.heic(64, rows=5, columns=6)
    assert images.identify(data).size == (6 * 64, 5 * 64)
    assert images.read(data).mean((0, 1)) == pytest.approx([255, 0, 0], abs=3)


@pytest.mark.parametrize("primary", [0, 1, 2])
def test_of_a_heic_with_several_pictures_the_primary_is_read(primary):
    several = pillow_heif.HeifFile()
    for i in range(3):
        colour = "blue" if i == primary else "red"
        several.add_from_pillow(Image.new("RGB", (300, 300), colour))
    file = io.BytesIO()
    several.save(file, primary_index=primary)
    assert images.read(file.getvalue()).mean((0, 1)) == pytest.approx([0, 0, 255], abs=3)


def test_no_heic_is_written():
    assert "HEIF" in Image.OPEN
    assert "HEIF" not in {*Image.SAVE, *Image.SAVE_ALL}


def test_one_thread_decodes_and_nothing_but_the_picture():
    heif = pillow_heif.options
    assert AvifImagePlugin.DEFAULT_MAX_THREADS == heif.DECODE_THREADS == 1
    assert [heif.THUMBNAILS, heif.DEPTH_IMAGES, heif.AUX_IMAGES] == [False] * 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation_is_read(kind):
    red, blue = (Image.new("RGB", (300, 300), colour) for colour in ("red", "blue"))
    data = encode(red, kind, save_all=True, append_images=[blue])
    assert images.read(data).mean((0, 1)).round()[[0, 2]] == pytest.approx([255, 0], abs=2)


@pytest.mark.parametrize("mode", ["LAB", "YCbCr", "PA", "LA", "1"])
def test_every_mode_of_tiff_becomes_rgb(scene, mode):
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image, expected = ImageCms.profileToProfile(scene, *profiles, outputMode="LAB"), scene
    else:
        image = scene.convert("P").convert("PA") if mode == "PA" else scene.convert(mode)
        expected = image.convert("RGB")
    assert difference(encode(image, "TIFF"), expected) < 2


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


# Transparency


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("alpha", [0, 100, 255])
def test_a_picture_is_laid_on_white_as_far_as_it_is_transparent(kind, alpha):
    image = Image.new("RGBA", (300, 300), (50, 50, 50, alpha))
    options = {"quality": 100} if kind == "HEIF" else {}
    levels = images.read(encode(image, kind, **options))
    expected = 255 - alpha / 255 * 205
    assert (levels.min(), levels.max()) == pytest.approx(
        (expected, expected), abs=2 if alpha else 1
    )


def test_transparent_palette_entries_are_white():
    image = Image.new("P", (300, 300), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    for kind in ("PNG", "GIF"):
        assert images.read(encode(image, kind, transparency=0)).min() == 255


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


def test_grey_with_multiplied_alpha_is_read(scene):
    grey = np.asarray(scene.convert("L"))
    samples = np.stack([grey, np.full_like(grey, 255)], axis=2)
    tags = {258: (3, 2, struct.pack("<HH", 8, 8)), 259: (3, 1, struct.pack("<H", 1))}
    tags |= {277: (3, 1, struct.pack("<H", 2)), 338: (3, 1, struct.pack("<H", 1))}
    data = hostile.tiff(*scene.size, data=samples.tobytes(), tags=tags)
    assert Image.open(io.BytesIO(data)).mode == "La"
    assert difference(data, scene.convert("L")) < 1


# Grey with more than 8 bits

RAMP = np.linspace(0, 1, 400) * np.ones((300, 1))


def deep_tiff(levels: np.ndarray, kind: str, *, inverted: bool = False) -> bytes:
    """Encode H×W levels as a TIFF with samples of that type."""
    data = (levels if "f" in kind else np.rint(levels)).astype(kind)
    values = {258: 8 * data.itemsize, 259: 1, 262: int(not inverted)}
    values[339] = {"u": 1, "i": 2, "f": 3}[data.dtype.kind]
    order = ">" if kind[0] == ">" else "<"
    tags = {tag: (4, 1, struct.pack(f"{order}I", value)) for tag, value in values.items()}
    return hostile.tiff(*levels.shape[::-1], data=data.tobytes(), tags=tags, order=order)


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
    assert difference(deep_tiff(RAMP * white, kind), expected) < 0.1  # rounded, not truncated


@pytest.mark.parametrize("kind", ["u2", "f4"])
def test_deep_grey_with_black_and_white_exchanged_is_read_so(kind):
    expected = Image.fromarray(255 - np.rint(RAMP * 255).astype(np.uint8))
    assert difference(deep_tiff(RAMP * 65535, kind, inverted=True), expected) < 0.1


@pytest.mark.parametrize(
    ("kind", "low", "high", "white"),
    [
        *(("f4", 0, 0, 1), ("f4", 0, 1.09, 1), ("f4", -0.09, 1, 1), ("f4", 0, 16, 255)),
        *(("f4", 0, 280.5, 255), ("f4", -25.5, 255, 255), ("f4", 0, 281, 4095)),
        *(("f4", 0, 4504, 4095), ("f4", 0, 4505, 65535), ("f4", 0, 72_088, 65535)),
        *(("i2", 0, 4504, 4095), ("i2", 0, 4505, 32767), ("u2", 0, 4505, 65535)),
    ],
)
def test_white_is_the_first_that_no_level_exceeds_by_more_than_a_tenth(kind, low, high, white):
    array = images.read(deep_tiff(np.where(RAMP < 0.5, low, high), kind))
    assert array[:, :50].max() == max(0, round(low * 255 / white))
    assert (array[:, -50:] == min(255, round(high * 255 / white))).all()


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1.11), (0, 255 / 16), (-0.11, 1), (-25.6, 255), (0, 72_089), (-1, 0), (-1e9, 0), (0, 1e6)],
)
def test_deep_grey_without_a_known_white_is_rejected_with_its_levels(low, high):
    with pytest.raises(images.BadImageError) as raised:
        images.read(deep_tiff(np.where(RAMP < 0.5, low, high), "f4"))
    assert str(raised.value) == (
        f"The picture's levels go from {low:g} to {high:g}, and nothing says which of them is"
        " white: save it as a JPEG or PNG."
    )


def test_deep_grey_without_any_level_is_rejected_and_never_black():
    with pytest.raises(images.BadImageError, match="The picture's levels go from nan to nan"):
        images.read(deep_tiff(np.full((300, 400), np.nan), "f4"))


def test_gaps_in_floats_are_black():
    levels = np.where(RAMP < 0.5, np.nan, RAMP)
    levels[0, 0] = 0
    assert images.read(deep_tiff(levels, "f4"))[:, :50].max() == 0


@pytest.mark.parametrize("kind", ["f8", "u8", "f2"])
def test_samples_that_cant_be_read_are_rejected(kind):
    with pytest.raises(images.BadImageError, match=r"This TIFF file can.t be read: .* rare kind"):
        images.read(deep_tiff(255 * RAMP, kind))


# What is rejected


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("kind", "accepted", "rejected"),
    [
        (b"tEXt", 3_000_000, 70_000_000),  # 64 MiB of all texts together
        (b"zTXt", 2**24 - 9, 2**24 + 1),  # of one that is compressed
        (b"iTXt", 2**24 - 9, 2**24 + 1),
        (b"iCCP", 2**24 - 9, 2**24 + 1),
    ],
)
def test_a_png_with_much_text_is_read_or_rejected_for_it(scene, kind, accepted, rejected, before):
    data = encode(scene, "PNG")

    def with_text(size: int) -> bytes:
        text = bytes(size) if kind == b"tEXt" else zlib.compress(bytes(size), 1)
        head = {b"iTXt": b"a\0\1\0\0\0", b"tEXt": b"a\0"}.get(kind, b"a\0\0")
        at = 33 if before else len(data) - 12
        return data[:at] + hostile.chunk(kind, head + text) + data[at:]

    assert difference(with_text(accepted), scene) == 0
    with pytest.raises(images.TooHeavyError) as raised:
        images.read(with_text(rejected))
    assert str(raised.value) == (
        "The picture has too much text or too large a profile in it: save it without them."
    )


@linux
@pytest.mark.parametrize(
    ("mode", "size", "memory"),
    [("RGBA", (5000, 5000), 1.25 * 4 * 5000**2), ("RGB", (1, 60_000), 10_000_000)],
    ids=["large", "narrow"],
)
def test_a_picture_takes_hardly_more_memory_than_its_pixels(mode, size, memory):
    data = encode(Image.new(mode, size), "PNG", compress_level=1)

    async def decode() -> tuple[bool, bytes]:
        limits = decoder.Limits(10, int(memory), 0, images.MAX_PIXELS)
        async with decoders.Decoders(settings.Settings(), cores=1) as started:
            with started.start(limits) as process:
                return await decoders.ask(process, data)

    failed, answer = asyncio.run(decode())
    assert not failed, answer


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MemoryError(), images.TooHeavyError, "^The picture needs too much memory to decode: "),
        (RuntimeError("Memory allocation error: 5"), images.TooHeavyError, "too much memory"),
        (ValueError("a bug"), images.BadImageError, "damaged or cut off"),
        (images.BadImageError("as it is"), images.BadImageError, "^as it is$"),
    ],
)
def test_an_error_of_a_decoder_is_told_in_plain_words(scene, monkeypatch, error, kind, words):
    def fail(*_: object, **__: object) -> None:
        raise error

    data = encode(scene, "JPEG")
    opened = images.identify(data)
    monkeypatch.setattr(opened, "load", fail)
    monkeypatch.setattr(Image, "open", fail)
    for read in (lambda: images.identify(data), lambda: images.decode(opened, 1)):
        with pytest.raises(images.HttpError, match=words) as raised:
            read()
        assert isinstance(raised.value, kind)


def test_the_pixels_that_are_read_by_default_are_64_million():
    assert images.identify(png_header(8000, 8000)).size == (8000, 8000)
    with pytest.raises(images.TooManyPixelsError) as raised:
        images.read(png_header(8000, 8001))
    assert str(raised.value) == (
        "The picture has 8000×8001 pixels, more than the 64 million that are read: use a smaller"
        " one."
    )


def test_a_limit_of_its_own_is_kept_to_the_pixel():
    assert images.read(encode(Image.new("1", (40, 30)), "PNG"), 1200).shape == (224, 224, 3)
    with pytest.raises(images.TooManyPixelsError, match=r"than the 0.001199 million"):
        images.read(encode(Image.new("1", (40, 30)), "PNG"), 1199)
    assert images.identify(png_header(20_000, 20_000), 400_000_000).size == (20_000, 20_000)


def jpeg_header(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    """Return a JPEG that says that it has another size than it has."""
    data = encode(Image.new(mode, (64, 64)), "JPEG", **options)
    at = data.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.parametrize(
    ("size", "factor"),
    [((1023, 2000), 1), ((1024, 1024), 2), ((4000, 3000), 4), ((4096, 5000), 8), ((20000,) * 2, 8)],
)
def test_a_jpeg_counts_as_its_decoder_reduces_it(size, factor):
    data, counted = jpeg_header(*size), size[0] * size[1] / factor**2
    assert images.identify(data, int(counted)).size == size
    with pytest.raises(images.TooManyPixelsError, match=f"{size[0]}×{size[1]}"):
        images.identify(data, int(counted) - 1)


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "PPM"]
)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_image_is_rejected_in_plain_words(scene, kind, share):
    data = encode(scene, kind)
    plain = (
        r"The image is damaged or cut off: use an undamaged file\.|This \w+ file can't be read: it"
        r" is damaged or cut off, or of a rare kind\. Save it anew, as a JPEG or PNG\."
    )
    with pytest.raises(images.BadImageError) as raised:
        images.read(data[: int(share * len(data))])
    assert re.fullmatch(plain, str(raised.value))


@pytest.mark.parametrize(
    "data", [b"", b"junk", b"http://localhost/x.jpg", b'{"a": 1}', b"\xff\xd8"]
)
def test_what_is_no_image_is_rejected(data):
    with pytest.raises(images.BadImageError):
        images.read(data)


# The memory that is estimated from a header, on which it depends whether a picture is decoded


def webp_header(kind: bytes, width: int, height: int) -> bytes:
    """Return the beginning of a WebP of one of its three kinds."""
    if kind == b"VP8X":
        size = bytes(4) + b"".join((n - 1).to_bytes(3, "little") for n in (width, height))
    elif kind == b"VP8L":
        size = b"\x2f" + struct.pack("<I", width - 1 | height - 1 << 14 | 1 << 28) + bytes(5)
    else:  # each with two bits for a scale
        size = bytes(6) + struct.pack("<HH", width | 1 << 14, height | 3 << 14)
    return b"RIFF\0\0\0\0WEBP" + kind + bytes(4) + size


@pytest.mark.parametrize(
    ("kind", "size"),
    [(b"VP8 ", (12_345, 6_789)), (b"VP8L", (12_345, 6_789)), (b"VP8X", (70_000, 123_456))],
)
def test_to_open_a_webp_takes_twice_its_pixels_and_itself(kind, size):
    header = webp_header(kind, *size)
    assert images.memory_to_open(header) == 8 * size[0] * size[1] + len(header)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0"}])
def test_the_size_of_a_real_webp_is_found(options):
    data = encode(Image.new("RGBA", (1000, 300)), "WEBP", **options)
    assert images.memory_to_open(data) == 8 * 1000 * 300 + len(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "AVIF"])
def test_to_open_other_formats_takes_no_memory(scene, kind):
    assert images.memory_to_open(encode(scene, kind)) == 0


def small(mode: str, kind: str, **options: object) -> bytes:
    return encode(Image.new(mode, (640, 480)), kind, **options)


def tiff_of_strips(heights: bytes) -> bytes:
    """Return the beginning of a TIFF of 4000×3000 pixels, with strips of so many rows."""
    return hostile.tiff(4000, 3000, data=b"", tags={278: (4, len(heights) // 4, heights)})


MEMORY = {
    "JPEG": (jpeg_header(4000, 3000), 11_017_152),
    "JPEG, grey": (jpeg_header(4000, 3000, "L"), 15_058_608),
    "JPEG, progressive": (jpeg_header(4000, 3000, progressive=True), 43_000_000),
    "JPEG, progressive, 4:4:4": (
        jpeg_header(4000, 3000, progressive=True, subsampling="4:4:4"),
        79_000_000,
    ),
    "JPEG, progressive CMYK": (jpeg_header(4000, 3000, "CMYK", progressive=True), 103_000_000),
    "JPEG of 108 megapixels, progressive": (
        jpeg_header(12_000, 9000, progressive=True),
        334_750_000,  # with its bytes, the 341 MB of docs/api.md
    ),
    "PNG, grey": (png_header(4000, 3000, colours=0), 26_308_608),
    "PNG": (png_header(4000, 3000), 56_017_152),
    "PNG with alpha": (png_header(4000, 3000, colours=6), 62_308_608),
    "PPM": (b"P6 4000 3000 255 ", 148_000_000),
    "PPM, grey of 16 bits": (b"P5 4000 3000 65535 ", 148_000_000),
    "PPM, black and white": (b"P4 4000 3000 ", 112_000_000),
    "PPM, wide": (b"P6 50000 1000 255 ", 604_000_000),
    "HEIC": (small("RGB", "HEIF"), 18_611_200),
    "HEIC, grey": (small("L", "HEIF"), 17_228_800),
    "HEIC with alpha": (small("RGBA", "HEIF"), 19_532_800),
    "HEIC, 4:2:2": (small("RGB", "HEIF", chroma=422), 19_072_000),
    "HEIC, 4:4:4": (small("RGB", "HEIF", chroma=444), 19_993_600),
    "HEIC, deep": (small("I;16", "HEIF"), 19_072_000),
    "AVIF": (small("RGB", "AVIF"), 8_915_200),
    "WebP": (small("RGB", "WEBP"), 8_554_752),
    "GIF": (small("P", "GIF"), 13_924_608),
    "TIFF, one strip": (hostile.tiff(4000, 3000, data=b"", tags={}), 112_000_000),
    "TIFF, two strips": (tiff_of_strips(struct.pack("<I", 2000)), 80_000_000),
    "TIFF, many strips": (tiff_of_strips(struct.pack("<I", 16)), 26_308_608),
    "TIFF, strips of two heights": (tiff_of_strips(struct.pack("<II", 2000, 16)), 80_000_000),
    "TIFF, a strip that is said to be higher": (tiff_of_strips(b"\xff" * 4), 112_000_000),
    "TIFF of 16 bits, the high ones first": (deep_tiff(RAMP, ">u2"), 9_040_000),
    "TIFF with a tile larger than it": (hostile.huge_tile(), 3_359_447_296),
}


@pytest.mark.filterwarnings("ignore:Metadata Warning")
@pytest.mark.parametrize("name", MEMORY)
def test_the_memory_that_decoding_takes_is_estimated(name):
    data, expected = MEMORY[name]
    assert images.memory_to_decode(images.identify(data, 10**9)) == expected
