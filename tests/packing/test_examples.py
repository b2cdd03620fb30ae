"""The example photos: right ones, of different classes, small, and with nothing but pixels."""

import io

import numpy as np
from helpers import encode
from PIL import ExifTags, Image

from simplestack.packing import examples

RIGHT = np.array([[3, 0, 0], [9, 0, 0], [0, 2, 0], [0, 0, 1], [5, 0, 0]], dtype=np.float32)


def test_the_most_certain_photo_of_each_class_is_chosen():
    assert examples.choose(RIGHT, [0, 0, 1, 2, 0]) == [1, 2, 3]


def test_mistakes_are_not_chosen():
    assert examples.choose(RIGHT, [0, 1, 1, 1, 0]) == [4, 2, 0]


def test_a_model_that_is_never_right_has_no_examples():
    assert examples.choose(RIGHT, [1, 1, 2, 0, 2]) == []


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def reopened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(examples.encode(data)))


def test_where_and_when_a_photo_was_taken_is_left_out():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (48.0, 8.0, 14.0)
    photo = Image.new("RGB", (400, 300), "green")
    data = encode(photo, "JPEG", exif=exif, comment=b"at home", xmp=b"<x:xmpmeta/>")
    written = reopened(data)
    assert written.size == (300, 400)  # upright
    assert not written.getexif()
    assert set(written.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_even_noise_is_small():
    data = encode(noise(3000, 2000), "PNG")
    assert len(examples.encode(data)) < 60_000
    assert max(reopened(data).size) <= 512


def test_a_small_photo_is_not_enlarged():
    assert reopened(encode(noise(60, 40), "PNG")).size == (60, 40)
