"""What is no image is rejected with a sentence that names it, and what to do instead."""

import base64
import time

import pytest
from helpers import encode
from PIL import Image

from simplestack.serving import images, kinds
from simplestack.serving.errors import BadImageError, UnsupportedFormatError

PREAMBLE = (
    b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- <svg> -->\n<!DOCTYPE svg PUBLIC '-//W3C//DTD' [\n"
    b"<!ENTITY a 'b'>\n]>\n" + b"<!-- a drawing -->\n" * 1000
)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"%PDF-1.7 ...", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>\n<svg/>", "SVG"),
        (b"<svg:svg xmlns:svg='http://www.w3.org/2000/svg'/>", "SVG"),
        (PREAMBLE + b"<svg\n/>", "SVG"),
        (PREAMBLE + b"<ns0:svg>", "SVG"),
        (b"\0\0\0\x18ftypmp42....", "video"),
    ],
)
def test_file_of_another_kind_is_named(data, name):
    with pytest.raises(UnsupportedFormatError, match=f"This is a {name} file: use a JPEG"):
        images.read(data)


@pytest.mark.parametrize("data", [b"<svgs>", b"<html><svg/></html>", PREAMBLE + b"<html>"])
def test_other_documents_are_no_svg(data):
    with pytest.raises(BadImageError, match="not an image"):
        images.read(data)


@pytest.mark.parametrize("part", [b"<!---->", b"<!--", b"<?", b"<!DOCTYPE", b"<!DOCTYPE[]", b"\n"])
def test_a_long_preamble_takes_no_time_to_speak_of(part):
    began = time.process_time()
    kinds.refusal(part * (10 * 2**20 // len(part)))
    assert time.process_time() - began < 2


ENCODED = base64.b64encode(bytes(range(256)) * 100)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"junk", "not an image"),
        (b"\xff\xd8", "not an image"),
        (b"http://localhost/x.jpg", "This is an address, not an image"),
        (b'{"a": 1}', "This is JSON, not an image"),
        (b'\n[{"image": "' + ENCODED + b'"}]', "This is JSON, not an image"),
        (ENCODED, "This is base64, not an image"),
        (b"data:image/jpeg;base64," + ENCODED, "This is base64, not an image"),
        (b"image=" + ENCODED.replace(b"+", b"%2B"), "This is base64, not an image"),
        (b"a.jpg", "the name of a file, not an image: put an @ before it"),
        (b"image=@/tmp/my photo.JPG\n", "the name of a file"),
        ("schöner Käfer.jpeg".encode(), "the name of a file"),
        (b"P1010001.JPG", "the name of a file"),
        (b"<html><body>Not found</body></html>", "not an image"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "This JPEG file can't be read: it is damaged"),
        (b"", "empty"),
    ],
)
def test_the_mistake_is_named(data, words):
    with pytest.raises(BadImageError, match=words):
        images.read(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF"])
def test_an_image_without_its_line_breaks_and_zeros_is_told_as_what_curl_sends(kind):
    noise = Image.effect_noise((100, 80), 80).convert("P" if kind == "GIF" else "RGB")
    data = encode(noise, kind)
    assert not kinds.is_text(data)
    with pytest.raises(BadImageError, match="If curl -d sent it, use curl --data-binary"):
        images.read(data.translate(None, b"\r\n\0"))
