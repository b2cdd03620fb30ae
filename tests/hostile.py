"""Pictures made to take too much time or memory, of every format, by size, count and nesting."""

import hashlib
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from struct import pack

import PIL
import pillow_heif
import requests
from helpers import cache_folder, encode, get, make_once, post
from PIL import Image

VERSION = f"{PIL.__version__}{pillow_heif.__version__}{Path(__file__).read_text()}"
MAX_BYTES = 10 * 2**20
Tags = dict[int, tuple[int, int, bytes]]  # type, count and packed values


def tiff(width: int, height: int, *, data: bytes, tags: Tags) -> bytes:
    """Build a grey TIFF from its picture data and further tags."""
    plain = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 273: 8, 277: 1, 278: height}
    plain[279] = len(data)
    entries = {tag: (4, 1, pack("<I", value)) for tag, value in plain.items()} | tags
    directory, extra = bytearray(), bytearray()
    after = 8 + len(data) + 2 + 12 * len(entries) + 4
    for tag, (kind, count, values) in sorted(entries.items()):
        inline = values.ljust(4, b"\0")
        if len(values) > 4:
            inline = pack("<I", after + len(extra))
            extra += values
        directory += pack("<HHI", tag, kind, count) + inline
    head = b"II*\0" + pack("<I", 8 + len(data)) + data
    return head + pack("<H", len(entries)) + directory + b"\0" * 4 + extra


def huge_tile() -> bytes:
    side = 20_480
    data = zlib.compress(bytes(side * side), 9)
    values = {322: side, 323: side, 324: 8, 325: len(data)}
    tags = {tag: (4, 1, pack("<I", value)) for tag, value in values.items()}
    return tiff(64, 64, data=data, tags=tags)


def many_tags() -> bytes:
    pointers = {34665, 34853}  # to Exif's and GPS's
    tags = {tag: (2, 100, b"x" * 100) for tag in range(700, 60_700) if tag not in pointers}
    return tiff(64, 64, data=zlib.compress(bytes(64 * 64)), tags=tags)


def chunk(kind: bytes, data: bytes) -> bytes:
    return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, colours: int, *chunks: bytes, bits: int = 8, data: bytes | None = None
) -> bytes:
    """Build a PNG from its picture data, or else a black one."""
    head = chunk(b"IHDR", pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    if data is None:
        data = bytes((width * {0: 1, 2: 3, 6: 4}[colours] + 1) * height)
    parts = (head, *chunks, chunk(b"IDAT", zlib.compress(data, 9)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def many_chunks(kind: bytes, data: bytes) -> bytes:
    one = chunk(kind, data)
    return png(8, 8, 2, one * ((MAX_BYTES - 1000) // len(one)))


def jpeg_segments(marker: int, payload: bytes) -> bytes:
    plain = encode(Image.new("RGB", (64, 64)), "JPEG")
    segment = pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
    return plain[:2] + segment * ((MAX_BYTES - 5000) // len(segment)) + plain[2:]


def many_scans() -> bytes:
    """Build a JPEG with its second scan again and again: each takes a pass over all blocks."""
    noise = Image.effect_noise((2000, 2000), 60).convert("RGB")
    plain = encode(noise, "JPEG", progressive=True, quality=5)
    scan, table = b"\xff\xda", b"\xff\xc4"  # each scan begins with its Huffman table
    start = plain.index(scan, plain.index(scan) + 2)
    end = plain.index(table, start)
    head = plain[start : start + 2 + int.from_bytes(plain[start + 2 : start + 4], "big")]
    return plain[:end] + (head + b"\0") * (10**6 // (len(head) + 1)) + plain[end:]


def box(kind: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return pack(">I", 8 + len(data)) + kind + data


def full(kind: bytes, *parts: bytes, version: int = 0) -> bytes:
    return box(kind, pack(">I", version << 24), *parts)


def heic(side: int, rows: int, columns: int, extra: int = 0) -> bytes:
    """Build a HEIC as phones do, of red tiles, and of `extra` such pictures that nothing uses."""
    tile = encode(Image.new("RGB", (side, side), "red"), "HEIF")
    start = tile.index(b"hvcC") - 4
    codec = tile[start : start + int.from_bytes(tile[start : start + 4], "big")]
    data = tile[tile.index(b"mdat") + 4 :]
    width, height, count = columns * side, rows * side, rows * columns
    grid = pack(">BBBBII", 0, 1, rows - 1, columns - 1, width, height)
    others = range(2, 2 + count + extra)
    kinds = [(1, b"grid"), *((i, b"hvc1") for i in others)]
    infos = [full(b"infe", pack(">HH5s", i, 0, kind), version=2) for i, kind in kinds]
    numbers = pack(f">{2 + count}H", 1, count, *others[:count])
    uses = [pack(">HBB", 1, 1, 1), *(pack(">HBBB", i, 2, 2, 0x83) for i in others)]
    shapes = [full(b"ispe", pack(">II", *size)) for size in ((width, height), (side, side))]
    head = box(b"ftyp", b"heic\0\0\0\0mif1heic")

    def meta(at: int) -> bytes:
        places = [(1, 0, 1, at, len(grid)), *((i, 0, 1, at + len(grid), len(data)) for i in others)]
        packed = [pack(">HHHII", *place) for place in places]
        properties = full(b"ipma", pack(">I", len(uses)), *uses)
        return full(
            b"meta",
            *(full(b"hdlr", b"\0\0\0\0pict" + bytes(13)), full(b"pitm", b"\0\1")),
            full(b"iloc", pack(">BBH", 0x44, 0, len(places)), *packed),
            full(b"iinf", pack(">H", len(infos)), *infos),
            full(b"iref", box(b"dimg", numbers)),
            box(b"iprp", box(b"ipco", *shapes, codec), properties),
        )

    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", grid, data)


def large(kind: str, mode: str = "RGB", side: int = 7000, **options: object) -> bytes:
    return encode(Image.new(mode, (side, side)), kind, **options)


def once(name: str, make: Callable[[], bytes]) -> bytes:
    """Return what `make` does, encoded once for all runs until this file or an encoder changes."""
    folder = cache_folder("pictures", VERSION) / hashlib.sha256(name.encode()).hexdigest()[:16]
    made = make_once(folder, lambda folder: (folder / "picture").write_bytes(make()))
    return (made / "picture").read_bytes()


def build(kind: str) -> bytes:
    return once(kind, KINDS[kind])


def phone_photo(size: tuple[int, int], kind: str, **options: object) -> bytes:
    """Return a picture with as much detail as photos have."""

    def make() -> bytes:
        noise = Image.effect_noise((size[0] // 8, size[1] // 8), 60).convert("RGB")
        return encode(noise.resize(size), kind, **options)

    return once(f"phone {size} {kind} {options}", make)


STRIPS = (1, MAX_BYTES - 1000, b"\1" * (MAX_BYTES - 1000))
TEXT = b"a\0\0" + zlib.compress(bytes(10**5))
KINDS: dict[str, Callable[[], bytes]] = {
    "TIFF with a tile larger than it": huge_tile,
    "TIFF of many strip offsets": lambda: tiff(64, 64, data=b"", tags={273: STRIPS}),
    "TIFF of many tags": many_tags,
    "large TIFF": lambda: large("TIFF", "RGBA", compression="tiff_lzw"),
    "progressive CMYK JPEG": lambda: large("JPEG", "CMYK", progressive=True),
    "JPEG of many Exif segments": lambda: jpeg_segments(0xE1, b"Exif\0\0x"),
    "JPEG of many ICC segments": lambda: jpeg_segments(0xE2, b"ICC_PROFILE\0\1\xffx"),
    "JPEG of many comments": lambda: jpeg_segments(0xFE, b""),
    "JPEG of many resources": lambda: jpeg_segments(0xED, b"Photoshop 3.0\08BIM" + bytes(8)),
    "JPEG of many MPF segments": lambda: jpeg_segments(0xE2, b"MPF\0II*\0"),
    "JPEG of many scans": many_scans,
    "large JPEG": lambda: large("JPEG", "L"),
    "PNG of many chunks": lambda: many_chunks(b"abCd", b""),
    "PNG of many texts": lambda: many_chunks(b"tEXt", b"a\0b"),
    "PNG of many compressed texts": lambda: many_chunks(b"zTXt", TEXT),
    "PNG with a large compressed profile": lambda: png(
        8, 8, 2, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10**8), 9))
    ),
    "large PNG": lambda: large("PNG", "RGBA"),
    "wide PNG": lambda: png(50_000, 1000, 6),
    "long PNG": lambda: png(1, 50_000_000, 0),
    "large WebP": lambda: large("WEBP", method=0),
    "lossless WebP": lambda: large("WEBP", "RGBA", 3500, lossless=True, method=0),
    "large AVIF": lambda: large("AVIF", speed=10),
    "large HEIC": lambda: heic(512, 14, 14),
    "HEIC of many tiles": lambda: heic(64, 30, 30),
    "HEIC of many pictures": lambda: heic(64, 2, 2, extra=900),
    "HEIC of more pictures": lambda: heic(64, 2, 2, extra=60_000),
    "HEIC of a false size": lambda: encode(Image.new("RGB", (64, 64)), "HEIF").replace(
        pack(">II", 64, 64), pack(">II", 3500, 3500)
    ),
    "large GIF": lambda: large("GIF", "P"),
    "large BMP": lambda: large("BMP", "1"),
    "large PPM": lambda: b"P5 7000 7000 255 " + bytes(MAX_BYTES - 1000),
    "PPM of many comments": lambda: b"P3 1000 1000 255 " + b"#\n" * (MAX_BYTES // 2 - 1000),
    "plain PPM": lambda: b"P3 1250 1250 255 " + b"1 " * (3 * 1250**2),
}


@dataclass
class Outcome:
    hostile: Counter[int] = field(default_factory=Counter)  # statuses; 0 for no answer
    others: Counter[int] = field(default_factory=Counter)  # of ordinary photos
    photos: list[float] = field(default_factory=list)  # seconds until they were answered
    probes: list[float] = field(default_factory=list)  # seconds until /livez answered


def attack(url: str, bodies: list[bytes], at_once: int, photo: bytes) -> Outcome:
    """Post hostile pictures, and an ordinary photo again and again until all are answered."""
    outcome, done = Outcome(), threading.Event()

    def status(body: bytes) -> int:
        try:
            return post(url, body, timeout=120).status_code
        except requests.RequestException:
            return 0

    def ask(seconds: list[float], once: Callable[[], None]) -> None:
        over = False
        while not over:  # once, at least
            began = time.monotonic()
            once()
            seconds.append(time.monotonic() - began)
            over = done.wait(0.02)

    with ThreadPoolExecutor(at_once + 2) as pool:
        pool.submit(ask, outcome.photos, lambda: outcome.others.update([status(photo)]))
        pool.submit(ask, outcome.probes, lambda: get(f"{url}/livez").raise_for_status())
        outcome.hostile.update(pool.map(status, bodies))
        done.set()
    return outcome
