"""The example photos: right ones, of different classes, small, and with nothing but pixels."""

import io

import numpy as np
import pytest
from helpers import encode
from PIL import ExifTags, Image

from simplestack.packing import examples


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [([0, 0, 1, 2, 0], [1, 2, 3]), ([0, 1, 1, 1, 0], [4, 2, 0]), ([1, 1, 2, 0, 2], [])],
)
def test_the_most_certain_right_photo_of_each_class_is_chosen_first(targets, chosen):
    logits = np.array([[3, 0, 0], [9, 0, 0], [0, 2, 0], [0, 0, 1], [5, 0, 0]], dtype=np.float32)
    assert examples.choose(logits, targets) == chosen


def test_where_and_when_a_photo_was_taken_is_left_out():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (48.0, 8.0, 14.0)
    photo = Image.new("RGB", (400, 300), "green")
    data = encode(photo, "JPEG", exif=exif, comment=b"at home", xmp=b"<x:xmpmeta/>")
    written = Image.open(io.BytesIO(examples.encode(data)))
    assert written.size == (300, 400)  # upright
    assert not written.getexif()
    assert set(written.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


@pytest.mark.parametrize(("width", "height"), [(1100, 700), (60, 40)])
def test_even_noise_is_small_and_a_small_photo_is_not_enlarged(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    written = examples.encode(encode(Image.fromarray(pixels), "PNG"))
    size = Image.open(io.BytesIO(written)).size
    assert len(written) < 60_000
    assert size == (60, 40) if width == 60 else 200 < max(size) <= 512
