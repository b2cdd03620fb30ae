"""The service in this process, as tests/serving has it."""

from serving.conftest import client  # noqa: F401
