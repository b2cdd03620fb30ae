"""The settings of the service: environment variables, checked once, at the start."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields

from starlette.config import Config

from simplestack.serving import images
from simplestack.serving.errors import StackError

MAX_PORT = 65535
NUMBER = re.compile(r"0*[1-9][0-9]{0,14}")
ORIGIN = re.compile(r"\*|https?://[^/\s,]+")


@dataclass(frozen=True)
class Settings:
    """The settings, with their defaults."""

    max_bytes: int = 10 * 1024 * 1024  # of a body
    max_pixels: int = images.MAX_PIXELS  # of a picture
    max_requests: int = 64  # worked on or waiting at once, per worker
    timeout: int = 25  # seconds until an answer; Heroku's router gives up after 30
    port: int = 5000  # read by the command that starts the container
    web_concurrency: int = 1  # workers of gunicorn, which reads it by itself
    api_token: str = ""  # if empty, no token is asked for
    cors_origins: tuple[str, ...] = ()  # whose pages may send requests; "*" for any


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read every setting from the variable with its name in capitals. Raises StackError."""
    config = Config(environ=environment)

    def number(name: str, default: int) -> int:
        value = config(name, default=None)
        # gunicorn reads WEB_CONCURRENCY by itself, and can't if it is empty.
        if value is None or (value == "" and name != "WEB_CONCURRENCY"):
            return default
        if not NUMBER.fullmatch(value):
            raise StackError(
                f"{name}={value[:20]!r} is not a whole number above 0, of at most 15 digits:"
                " correct or unset it"
            )
        return int(value)

    numbers = {
        field.name: number(field.name.upper(), field.default)
        for field in fields(Settings)
        if isinstance(field.default, int)
    }
    if numbers["port"] > MAX_PORT:
        raise StackError(f"PORT={numbers['port']} is above {MAX_PORT}: correct or unset it")
    token = config("API_TOKEN", cast=_token, default="")
    origins = config("CORS_ORIGINS", cast=_origins, default="")
    return Settings(**numbers, api_token=token, cors_origins=origins)


def _token(value: str) -> str:
    if value != value.strip() or not value.isprintable():
        raise StackError(
            "API_TOKEN can't be sent in a header: leave out line breaks, and spaces at its ends"
        )
    return value


def _origins(value: str) -> tuple[str, ...]:
    origins = tuple(filter(None, (origin.strip() for origin in value.split(","))))
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise StackError(
                f"CORS_ORIGINS={value!r}: {origin!r} is no origin: separate by commas what looks"
                " like https://example.com, or set * for any"
            )
    return origins


def checked() -> Settings:
    """Return the settings, or end the program with one line if one is wrong."""
    try:
        return read()
    except StackError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":  # in a container, before gunicorn reads some of them by itself
    checked()
