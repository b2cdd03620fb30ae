"""What is no image is rejected with a sentence that names it, and what to do instead."""

import base64
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from helpers import encode
from PIL import Image

from simplestack.serving import images, kinds
from simplestack.serving.errors import BadImageError, UnsupportedFormatError

USE = "use a JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP, TIFF or PPM file."
PREAMBLE = (
    b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- <svg> -->\n<!DOCTYPE svg PUBLIC '-//W3C//DTD' [\n"
    b"<!ENTITY a 'b'>\n]>\n" + b"<!-- a drawing -->\n" * 1000
)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"%PDF-1.7 ...", "PDF"),
        (b"%!PS-Adobe-3.0", "PostScript"),
        (b"8BPS\0\1\0\0", "Photoshop"),
        (b"\0\0\1\0\1\0\x10\x10", "ICO"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x0a\xfa\x1f\0", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "video"),
        (b"\0\0\0\x18ftypmp42....", "video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0", "video"),
        (b"\0\0\0\x14ftyp3gp4\0\0\0\0", "video"),
        (b"\0\0\0\x1cftypM4A \0\0\0\0", "video or sound"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "sound"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81", "video"),
        (b"\0\0\1\xba\x44\0\4\0", "video"),
        (b"FLV\1\5\0\0\0\x09", "video"),
        (b"OggS\0\2\0\0", "video or sound"),
        (b"ID3\3\0\0\0\0", "sound"),
        (b"PK\3\4\x14\0\0\0", "ZIP"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>\n<svg/>", "SVG"),
        (b"<svg:svg xmlns:svg='http://www.w3.org/2000/svg'/>", "SVG"),
        (PREAMBLE + b"<svg\n/>", "SVG"),
        (PREAMBLE + b"<ns0:svg>", "SVG"),
    ],
)
def test_file_of_another_kind_is_named(data, name):
    with pytest.raises(UnsupportedFormatError) as raised:
        images.read(data)
    assert str(raised.value) == f"This is a {name} file: {USE}"


@pytest.mark.parametrize("data", [b"<svgs>", b"<html><svg/></html>", PREAMBLE + b"<html>"])
def test_other_documents_are_no_svg(data):
    with pytest.raises(BadImageError, match="not an image"):
        images.read(data)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt what hangs once it has taken so much CPU time."""

    def interrupt(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize("part", [b"<!---->", b"<!--", b"<?", b"<!DOCTYPE", b"<!DOCTYPE[]", b"\n"])
def test_a_long_preamble_does_not_hang(part):
    with at_most(2):  # without possessive quantifiers, hours
        assert kinds.refusal(part * (10 * 2**20 // len(part))).status == 400


ENCODED = base64.b64encode(bytes(range(256)) * 100)
CURL = "send the bytes of the file, as curl --data-binary @image.jpg does."
NOT_AN_IMAGE = f"This is not an image that can be read: {USE}"
JSON = f"This is JSON, not an image: {CURL}"
ADDRESS = f"This is an address, not an image: nobody visits it. Instead, {CURL}"
BASE64 = f"This is base64, not an image: {CURL}"
NAME = (
    "This is the name of a file, not an image: put an @ before it, as in curl --data-binary"
    " @image.jpg."
)
CURL_D = (
    "This is not an image that can be read. If curl -d sent it, use curl --data-binary"
    " @image.jpg: -d leaves bytes out."
)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "There is no image: this is empty."),
        (b"junk", NOT_AN_IMAGE),
        (b"\xff\xd8", NOT_AN_IMAGE),
        (b"<html><body>Not found</body></html>", NOT_AN_IMAGE),
        (b"\0" * 100, NOT_AN_IMAGE),
        (b"http://localhost/x.jpg", ADDRESS),
        (b" https://localhost/x", ADDRESS),
        (b'{"a": 1}', JSON),
        (b' "a"', JSON),
        (b'\n[{"image": "' + ENCODED + b'"}]', JSON),
        (ENCODED, BASE64),
        (ENCODED[:64], BASE64),
        (ENCODED[:63], NOT_AN_IMAGE),
        (base64.encodebytes(bytes(range(256))), BASE64),
        (b"data:image/jpeg;base64," + ENCODED, BASE64),
        (b" data:image/png,x", BASE64),
        (b"image=" + ENCODED.replace(b"+", b"%2B"), BASE64),
        (b"a.jpg", NAME),
        (b"image=@/tmp/my photo.JPG\n", NAME),
        ("schöner Käfer.jpeg".encode(), NAME),
        (b"P1010001.JPG", NAME),
        (b"a.longer", NOT_AN_IMAGE),
        (b"x" * 500 + b".jpg", NAME),
        (b"two\nlines.jpg", NOT_AN_IMAGE),
        (b"PNG\x1a", CURL_D),
        (b"tab\tand line\n", NOT_AN_IMAGE),
    ],
)
def test_the_mistake_is_named(data, sentence):
    with pytest.raises(BadImageError) as raised:
        images.read(data)
    assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("JPEG", b"\xff\xd8\xff\xe0"),
        ("PNG", b"\x89PNG\r\n\x1a\n"),
        ("WEBP", b"RIFF\0\0\0\0WEBPVP8 "),
        ("AVIF", b"\0\0\0\x1cftypavif"),
        ("HEIF", b"\0\0\0\x1cftypheic"),
        ("GIF", b"GIF89a"),
        ("TIFF", b"II*\0"),
        ("TIFF", b"MM\0*"),
        ("BMP", b"BM"),
        ("PPM", b"P6 "),
    ],
)
def test_the_kind_of_an_image_that_cant_be_read_is_named(kind, head):
    with pytest.raises(BadImageError) as raised:
        images.read(head + bytes(100))
    assert str(raised.value) == (
        f"This {kind} file can't be read: it is damaged or cut off, or of a rare kind. Save it"
        " anew, as a JPEG or PNG."
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF"])
def test_an_image_without_its_line_breaks_and_zeros_is_told_as_what_curl_sends(kind):
    noise = Image.effect_noise((100, 80), 80).convert("P" if kind == "GIF" else "RGB")
    data = encode(noise, kind)
    assert not kinds.is_text(data)
    with pytest.raises(BadImageError) as raised:
        images.read(data.translate(None, b"\r\n\0"))
    assert str(raised.value) == CURL_D
