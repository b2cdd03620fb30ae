"""The settings of the service: environment variables, checked once, at the start."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_type_hints

from simplestack.serving import images
from simplestack.serving.errors import StackError

HIGHEST_PORT = 65535
ORIGIN = re.compile(r"\*|https?://[^/\s,]+")


@dataclass(frozen=True)
class Settings:
    """What can be set from outside, with its defaults."""

    max_bytes: int = 10 * 1024 * 1024  # of a body
    max_pixels: int = images.MAX_PIXELS  # of a picture
    max_requests: int = 64  # worked on or waiting at once, per worker
    timeout: int = 25  # seconds until an answer; Heroku's router gives up after 30
    port: int = 5000  # read by the command that starts the container
    web_concurrency: int = 1  # workers of gunicorn, which reads it by itself
    api_token: str = ""  # "" lets everybody in
    cors_origins: tuple[str, ...] = ()  # whose pages may ask from a browser; "*": everybody's


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read every setting from the variable with its name in capitals. Raises StackError."""
    numbers = {
        name: _positive(name.upper(), environment[name.upper()])
        for name, kind in get_type_hints(Settings).items()
        if kind is int and environment.get(name.upper())
    }
    if numbers.get("port", 0) > HIGHEST_PORT:
        raise StackError(f"PORT={numbers['port']} is above {HIGHEST_PORT}: correct or unset it")
    return Settings(
        **numbers,
        api_token=environment.get("API_TOKEN", ""),
        cors_origins=_origins(environment.get("CORS_ORIGINS", "")),
    )


def _positive(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or int(value) == 0:
        raise StackError(f"{name}={value!r} is not a whole number above 0: correct or unset it")
    return int(value)


def _origins(value: str) -> tuple[str, ...]:
    origins = tuple(filter(None, (origin.strip() for origin in value.split(","))))
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise StackError(
                f"CORS_ORIGINS={value!r}: {origin!r} is no origin: separate by commas what looks"
                " like https://example.com, or set * for everybody"
            )
    return origins


if __name__ == "__main__":  # the container asks so before it starts gunicorn
    try:
        from_environment()
    except StackError as error:
        sys.exit(f"error: {error}")
