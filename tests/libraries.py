"""The libraries inside the wheels of Pillow and pillow-heif, which requirement files don't name.

    python tests/libraries.py      # print the versions that are loaded, and fail below a floor

Each floor is the release that closed the last hole by which a picture could harm its decoder.
"""

import re
import sys
from typing import NamedTuple

import pillow_heif
from PIL import _avif, features  # type: ignore[attr-defined]


class Library(NamedTuple):
    """A library with its oldest acceptable version, the advisory for that, and what is loaded."""

    name: str
    floor: str
    advisory: str
    loaded: str

    def is_safe(self) -> bool:
        """Return whether the loaded version is the floor or a later one."""
        return numbers(self.loaded) >= numbers(self.floor)


def numbers(version: str) -> list[int]:
    """Return a version as numbers that can be compared."""
    return [int(part) for part in re.findall(r"\d+", version.partition("-")[0])]


HEIF = pillow_heif.libheif_info()
AVIF = dict(re.findall(r"(\w+) \[\w+\]:v?([\d.]+)", _avif.codec_versions()))
DE265 = re.search(r"version ([\d.]+)", HEIF["decoders"]["libde265"])
LIBRARIES = (
    # 1.23.7 closes more, but is in no wheel yet.
    Library("libheif", "1.23.6", "GHSA-v8qw-hwjv-44hw (1.23.5)", HEIF["libheif"]),
    Library("libde265", "1.1.3", "GHSA-xp3h-6f5r-8cxp (1.1.2)", DE265[1] if DE265 else ""),
    Library("libwebp", "1.3.2", "CVE-2023-4863", features.version("webp") or ""),
    Library("libavif", "1.3.0", "CVE-2025-48174", features.version("avif") or ""),
    Library("dav1d", "1.4.0", "CVE-2024-1580", AVIF.get("dav1d", "")),
    Library("aom", "3.14.0", "CVE-2026-56209", AVIF.get("aom", "")),
    Library("libtiff", "4.7.2", "CVE-2026-4775", features.version("libtiff") or ""),
    Library("libjpeg-turbo", "3.0.0", "CVE-2023-2804", features.version("libjpeg_turbo") or ""),
    Library("openjpeg", "2.5.4", "CVE-2025-54874", features.version("jpg_2000") or ""),
    # Of the system, and not of the wheel: Pillow reads PNGs with it, and doesn't need libpng.
    Library("zlib", "1.2.13", "CVE-2022-37434", features.version("zlib") or ""),
)


def main() -> None:
    """Print the table."""
    for library in LIBRARIES:
        verdict = "" if library.is_safe() else "  TOO OLD"
        print(f"{library.name:14}{library.loaded:10}at least {library.floor:8}", end="")
        print(f"{library.advisory}{verdict}")
    sys.exit(not all(library.is_safe() for library in LIBRARIES))


if __name__ == "__main__":
    main()
