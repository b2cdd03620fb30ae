"""The settings of the service: environment variables, checked once, at the start."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields

from simplestack.serving import images
from simplestack.serving.errors import StackError

NUMBER = re.compile(r"0*[1-9][0-9]{0,14}")
ORIGIN = re.compile(r"\*|https?://[^/\s,]+")


@dataclass(frozen=True)
class Settings:
    """The settings and their defaults; each is also an environment variable in capitals."""

    max_bytes: int = 10 * 1024 * 1024  # of a request's body
    max_pixels: int = images.MAX_PIXELS  # of a picture
    max_requests: int = 64  # in flight, per worker
    timeout: int = 25  # seconds until the answer; Heroku's router gives up after 30
    port: int = 5000  # read by the command that starts the container
    web_concurrency: int = 1  # gunicorn's workers; it reads the variable itself
    api_token: str = ""  # if empty, no token is required
    metrics: str = "on"  # "off" closes /metrics
    cors_origins: tuple[str, ...] = ()  # origins of pages that may send requests; "*" for all


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read every setting from the variable with its name in capitals. Raises StackError."""
    numbers = {}
    for field in fields(Settings):
        if isinstance(field.default, int):
            name = field.name.upper()
            value = environment.get(name, str(field.default))
            if not NUMBER.fullmatch(value):
                raise StackError(
                    f"{name}={value[:20]!r} is not a whole number above 0, of at most 15 digits:"
                    " correct or unset it"
                )
            numbers[field.name] = int(value)
    token = environment.get("API_TOKEN", "")
    if token != token.strip() or not token.isprintable():
        raise StackError(
            "API_TOKEN can't be sent in a header: leave out line breaks, and spaces at its ends"
        )
    if (metrics := environment.get("METRICS", "on")) not in {"on", "off"}:
        raise StackError(f"METRICS={metrics[:20]!r} is neither on nor off: correct or unset it")
    origins = tuple(environment.get("CORS_ORIGINS", "").replace(",", " ").split())
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise StackError(
                f"CORS_ORIGINS={origin!r} is not an origin: separate origins such as"
                " https://example.com by commas, or set * for all"
            )
    return Settings(**numbers, api_token=token, metrics=metrics, cors_origins=origins)


def checked() -> Settings:
    """Return the settings, or exit with a line that names the wrong one."""
    try:
        return read()
    except StackError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":  # in a container, before gunicorn itself reads WEB_CONCURRENCY
    checked()
