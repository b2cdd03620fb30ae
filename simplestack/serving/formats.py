"""The image formats that the service and the training read: the only list of them in Python.

A new format is added here. Pillow's plug-in for it, if it needs one, is imported in images.py, its
media type goes into openapi.json, and its suffix into the page's list of files, index.html.
"""

import re

FORMATS = {  # Pillow's names, with the suffixes of training photos
    "JPEG": (".jpg", ".jpeg", ".jfif"),  # MPO opens as JPEG
    "PNG": (".png",),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
}
SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}
NAMES = "JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP, TIFF or PPM"
RARE = re.compile(rb".{4}ftyp|II|MM", re.DOTALL)  # the first bytes of AVIF and HEIF, and of TIFF
