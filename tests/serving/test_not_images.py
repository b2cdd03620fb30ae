"""A body that is no image is rejected with a sentence that names it and the remedy."""

import base64
import json
import signal

import pytest
from helpers import PROJECT, encode
from PIL import Image

from simplestack.serving import images, not_images
from simplestack.serving.errors import BadImageError, DamagedImageError, UnsupportedFormatError
from simplestack.serving.formats import FORMATS, NAMES

USE = "use a JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP, TIFF or PPM file."
PREAMBLE = (
    b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- <svg> -->\n<!DOCTYPE svg PUBLIC '-//W3C//DTD' [\n"
    b"<!ENTITY a 'b'>\n]>\n" + b"<!-- a drawing -->\n" * 1000
)


@pytest.mark.parametrize("part", [b"<!---->", b"<!--", b"<?", b"<!DOCTYPE", b"<!DOCTYPE[]", b"\n"])
def test_a_long_preamble_does_not_hang(part):
    def interrupt(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, 2)  # of CPU time; without possessive quantifiers, hours
    try:
        assert not_images.error_for(part * (10 * 2**20 // len(part))).status == 400
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


ENCODED = base64.b64encode(bytes(range(256)) * 100)
CURL = "send the bytes of the file, as curl --data-binary @image.jpg does."
NOT_AN_IMAGE = f"This is not an image that can be read: {USE}"
ADDRESSES = [b"http://localhost/x.jpg", b" https://localhost/x"]
BASE64 = [
    *(ENCODED, ENCODED[:64], base64.encodebytes(bytes(range(256))), b" data:image/png,x"),
    *(b"data:image/jpeg;base64," + ENCODED, b"image=" + ENCODED.replace(b"+", b"%2B")),
]
NAME = (
    "This is the name of a file, not an image: put an @ before it, as in curl --data-binary"
    " @image.jpg."
)
CURL_D = (
    "This is not an image that can be read. If curl -d sent it, use curl --data-binary"
    " @image.jpg: -d leaves bytes out."
)


OTHERS = [
    *(("PDF", [b"%PDF-1.7 ..."]), ("PostScript", [b"%!PS-Adobe"]), ("ZIP", [b"PK\3\4\x14"])),
    *(("Photoshop", [b"8BPS\0\1\0\0"]), ("ICO", [b"\0\0\1\0\1\0"]), ("sound", [b"ID3\3\0"])),
    *(("JPEG 2000", [b"\0\0\0\x0cjP  \r\n\x87\n"]), ("gzip", [b"\x1f\x8b\x08\0\0\0\0\0"])),
    ("JPEG XL", [b"\xff\x0a\xfa\x1f\0", b"\0\0\0\x0cJXL \r\n\x87\n"]),
    ("video", [b"\0\0\0\x20ftypisom", b"\0\0\0\x18ftypmp42", b"\0\0\0\x14ftypqt  \0"]),
    ("video", [b"\0\0\0\x14ftyp3gp4", b"RIFF\0\0\0\0AVI LIST", b"\x1aE\xdf\xa3\x9fB\x86\x81"]),
    *(("video", [b"\0\0\1\xba\x44\0", b"FLV\1\5\0"]), ("sound", [b"RIFF\0\0\0\0WAVEfmt "])),
    ("video or sound", [b"\0\0\0\x1cftypM4A \0", b"OggS\0\2\0\0"]),
    ("SVG", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<?xml version='1.0'?>\n<svg/>"]),
    ("SVG", [b"<svg:svg xmlns:svg=''/>", PREAMBLE + b"<svg\n/>", PREAMBLE + b"<ns0:svg>"]),
]
MISTAKES = [
    ("There is no image: this is empty.", [b""]),
    (NOT_AN_IMAGE, [b"junk", b"\xff\xd8", b"\0" * 100, ENCODED[:63], b"a.longer"]),
    (NOT_AN_IMAGE, [b"two\nlines.jpg", b"tab\tand line\n", b"x" * 501 + b".jpg", b"a.c"]),
    (NOT_AN_IMAGE, [b"<svgs>", b"<html><svg/></html>", PREAMBLE + b"<html>"]),
    (f"This is an address, not an image, and isn't visited. Instead, {CURL}", ADDRESSES),
    (f"This is JSON, not an image: {CURL}", [b'{"a": 1}', b' "a"', b'\n["%b"]' % ENCODED]),
    (f"This is base64, not an image: {CURL}", BASE64),
    (NAME, [b"a.jpg", b"image=@/tmp/my photo.JPG\n", "schöner Käfer.jpeg".encode()]),
    (NAME, [b"P1010001.JPG", b"x" * 500 + b".jpg"]),
    (CURL_D, [b"PNG\x1a"]),
]
HEADS = [
    *(("JPEG", b"\xff\xd8\xff\xe0"), ("PNG", b"\x89PNG\r\n\x1a\n"), ("GIF", b"GIF89a")),
    *(("WEBP", b"RIFF\0\0\0\0WEBPVP8 "), ("AVIF", b"\0\0\0\x1cftypavif"), ("BMP", b"BM")),
    *(("HEIF", b"\0\0\0\x1cftypheic"), ("TIFF", b"II*\0"), ("TIFF", b"MM\0*"), ("PPM", b"P6 ")),
]
UNREADABLE = (
    "This {} file can't be read: it is damaged or cut off, too large, or of a rare kind. Save it"
    " again, as a JPEG or PNG."
)


@pytest.mark.parametrize(
    ("error", "sentence", "files"),
    [
        *((UnsupportedFormatError, f"This is a {name} file: {USE}", x) for name, x in OTHERS),
        *((BadImageError, sentence, texts) for sentence, texts in MISTAKES),
        *((DamagedImageError, UNREADABLE.format(x), [head + bytes(100)]) for x, head in HEADS),
    ],
)
def test_the_mistake_is_named(error, sentence, files):
    for data in files:
        with pytest.raises(error) as raised:
            images.read(data)
        assert (raised.type, str(raised.value)) == (error, sentence)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "PPM"])
def test_an_image_that_curl_has_stripped_of_line_breaks_and_zeros_gets_the_remedy(kind):
    noise = Image.effect_noise((100, 80), 80).convert("P" if kind == "GIF" else "RGB")
    data = encode(noise, kind)
    assert not not_images.is_text(data)
    with pytest.raises(BadImageError) as raised:
        images.read(data.translate(None, b"\r\n\0"))
    assert str(raised.value) == CURL_D


TO_TEXT = {
    "decode, replacing": lambda data: data.decode("utf-8", "replace").encode(),  # gateways
    "latin-1": lambda data: data.decode("latin-1").encode(),
    "str(bytes)": lambda data: str(data).encode(),
}


@pytest.mark.parametrize("to_text", TO_TEXT.values(), ids=TO_TEXT)
@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "PPM"])  # whose bytes fit all
def test_an_image_that_was_turned_into_text_is_told_so(kind, to_text):
    noise = Image.effect_noise((100, 80), 80).convert("P" if kind == "GIF" else "RGB")
    with pytest.raises(BadImageError) as raised:
        images.read(to_text(encode(noise, kind)))
    assert (raised.type, str(raised.value)) == (BadImageError, not_images.MANGLED)


def test_page_description_and_documentation_name_all_formats():
    web = PROJECT / "simplestack/serving/web"
    components = json.loads((web.parent / "openapi.json").read_text())["components"]
    types = components["requestBodies"]["Image"]["content"]
    names = {kind.removeprefix("image/").upper() for kind in types}
    portable = {"X-PORTABLE-GRAYMAP", "X-PORTABLE-PIXMAP"}
    assert names == {*FORMATS, "HEIC", *portable} - {"PPM"}
    suffixes = ",".join((*FORMATS["HEIF"], *FORMATS["PPM"]))  # others are known to all systems
    assert f'accept="image/*,{suffixes}"' in (web / "index.html").read_text()
    documentation = (PROJECT / "docs/api.md").read_text()
    assert f"reads {NAMES.replace(' or ', ' and ')}" in " ".join(documentation.split())
