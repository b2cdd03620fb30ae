"""The example photos: right ones, of different classes, small, and with nothing but pixels."""

import base64
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


def written(data, folder):
    """Return the JPEG that a photo becomes."""
    (folder / "photo").write_bytes(data)
    return base64.b64decode(examples.encode(folder / "photo"))


def test_where_and_when_a_photo_was_taken_is_left_out(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (48.0, 8.0, 14.0)
    photo = Image.new("RGB", (400, 300), "green")
    data = encode(photo, "JPEG", exif=exif, comment=b"at home", xmp=b"<x:xmpmeta/>")
    example = Image.open(io.BytesIO(written(data, tmp_path)))
    assert example.size == (300, 400)  # upright
    assert not example.getexif()
    assert set(example.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


@pytest.mark.parametrize(("size", "shown"), [((1024, 768), (512, 384)), ((60, 40), (60, 40))])
def test_a_large_photo_is_reduced_and_a_small_one_is_not_enlarged(tmp_path, size, shown):
    example = written(encode(Image.new("RGB", size), "PNG"), tmp_path)
    assert Image.open(io.BytesIO(example)).size == shown
