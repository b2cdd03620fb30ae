"""A decoder: its limits for a picture, and its replies."""

import asyncio
import base64
import json
import re
import sys

import hostile
import numpy as np
import pytest
from helpers import encode
from hostile import phone_photo
from PIL import Image

from simplestack.serving import decoder, decoder_pool, images, settings
from simplestack.serving.decoder import Limits

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps such limits")
AMPLE = Limits(4, 211_000_000, 0, 64_000_000)


@pytest.fixture(scope="module")
def ask():
    """Return a function that forks a decoder with some limits and sends it a picture."""
    pool = decoder_pool.Decoders(settings.Settings(), cores=1)
    with asyncio.Runner() as runner:

        def ask(limits, data):
            process, _ = runner.run(pool.start(limits))
            with process:
                return runner.run(decoder_pool.ask(process, data))

        yield ask
        runner.run(pool.__aexit__())


@pytest.fixture
def slow(monkeypatch):
    """The limits of the slow lane in a container of 512 MB."""
    monkeypatch.setattr(decoder_pool, "memory_limit", lambda: 2**29)
    return decoder_pool.Decoders(settings.Settings(), cores=1).slow.limits


@linux
@pytest.mark.parametrize(
    ("kind", "memory", "error", "words"),
    [
        *((x, 30, "TooLargeError", f"^{images.TOO_HEAVY}$") for x in ("large PNG", "large TIFF")),
        ("large GIF", 30, "TooLargeError", f"^{images.TOO_HEAVY}$"),
        *((x, 100, "DamagedImageError", "too large") for x in ("large WebP", "large AVIF")),
        ("progressive CMYK JPEG", 100, "DamagedImageError", "too large"),
    ],
)
def test_a_picture_that_does_not_fit_is_refused(ask, kind, memory, error, words):
    failed, answer = ask(Limits(10, memory * 10**6, 0, images.MAX_PIXELS), hostile.build(kind))
    name, sentence = json.loads(answer)
    assert (failed, name) == (True, error)
    assert re.search(words, sentence)


@linux
@pytest.mark.parametrize(
    ("mode", "size", "memory"),
    [("RGBA", (2500, 2500), int(1.5 * 4 * 2500**2)), ("RGB", (1, 60_000), 10_000_000)],
)
def test_a_picture_takes_hardly_more_memory_than_its_pixels(ask, mode, size, memory):
    data = encode(Image.new(mode, size), "PNG", compress_level=1)
    failed, answer = ask(Limits(10, memory, 0, images.MAX_PIXELS), data)
    assert not failed, answer


@linux
@pytest.mark.parametrize(
    ("size", "kind", "options"),
    [
        *(((8192, 6144), "JPEG", {"progressive": True}), ((16320, 12240), "JPEG", {"quality": 20})),
        *(((4096, 3072), "WEBP", {"method": 0}), ((4096, 3072), "AVIF", {"speed": 10})),
        ((4032, 3024), "HEIF", {}),
    ],
)
def test_the_photos_of_phones_are_decoded_in_512_mb(ask, slow, size, kind, options):
    assert slow.memory // 10**6 == 211
    failed, answer = ask(slow, phone_photo(size, kind, **options))
    assert not failed, answer


@pytest.mark.parametrize("tiles", [(512, 6, 8, 0), (64, 30, 30, 0), (64, 2, 2, 900)])
def test_a_heic_of_tiles_is_decoded(ask, tiles):
    failed, answer = ask(AMPLE, hostile.heic(*tiles))
    assert not failed, answer
    colour = np.frombuffer(answer, np.uint8).reshape(-1, 3).mean(0)
    assert colour == pytest.approx([255, 0, 0], abs=3)


def test_the_reply_is_the_pixels_and_top_k_or_an_error(photo):
    data = photo.read_bytes()
    content = {"inputs": base64.b64encode(data).decode(), "parameters": {"top_k": 3}}
    text, pixels = json.dumps(content).encode(), images.read(data).tobytes()
    assert decoder.decode(data, "", AMPLE) == (False, pixels)
    assert decoder.decode(text, "application/json", AMPLE) == (False, pixels + b"3")
    for body, content_type, limits, error, words in (
        (data[:2000], "", AMPLE, "DamagedImageError", "damaged or cut off"),
        (data[:2000], "", AMPLE._replace(max_pixels=1000), "TooLargeError", "pixels"),
        (b"", "multipart/form-data; boundary=x", AMPLE, "BadImageError", "The form has no file"),
    ):
        failed, answer = decoder.decode(body, content_type, limits)
        name, sentence = json.loads(answer)
        assert (failed, name) == (True, error)
        assert words in sentence
