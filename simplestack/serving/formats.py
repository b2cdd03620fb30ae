"""The image formats that the service and the training read."""

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
KNOWN_AS = [{"WEBP": "WebP", "HEIF": "HEIC"}.get(name, name) for name in FORMATS]
NAMES = f"{', '.join(KNOWN_AS[:-1])} or {KNOWN_AS[-1]}"
