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


@pytest.mark.parametrize(("size", "shown"), [((1024, 768), (384, 512)), ((60, 40), (40, 60))])
def test_an_example_is_upright_small_and_without_place_and_time(tmp_path, size, shown):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (48.0, 8.0, 14.0)
    told = {"exif": exif, "comment": b"at home", "xmp": b"<x:xmpmeta/>"}
    (tmp_path / "photo").write_bytes(encode(Image.new("RGB", size), "JPEG", **told))
    example = Image.open(io.BytesIO(base64.b64decode(examples.encode(tmp_path / "photo"))))
    assert example.size == shown
    assert not example.getexif()
    assert set(example.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
