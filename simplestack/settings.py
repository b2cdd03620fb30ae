"""The settings of the service: environment variables, checked once, at the start."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from simplestack import StackError, images


@dataclass(frozen=True)
class Settings:
    """What can be set from outside, with its defaults."""

    max_bytes: int = 10 * 1024 * 1024  # of a body
    max_pixels: int = images.MAX_PIXELS  # of a picture
    max_requests: int = 32  # worked on or waiting at once, per worker
    timeout: int = 25  # seconds until an answer; Heroku's router gives up after 30
    api_token: str = ""  # "" lets everybody in


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read MAX_BYTES, MAX_PIXELS, MAX_REQUESTS, TIMEOUT and API_TOKEN. Raises StackError."""
    numbers = {
        name: _positive(name.upper(), environment[name.upper()])
        for name in ("max_bytes", "max_pixels", "max_requests", "timeout")
        if environment.get(name.upper())
    }
    return Settings(**numbers, api_token=environment.get("API_TOKEN", ""))


def _positive(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or int(value) == 0:
        raise StackError(f"{name}={value!r} is not a whole number above 0: correct or unset it")
    return int(value)
