"""The picture in a request: its body, or a file in it."""

import sys
from collections.abc import AsyncGenerator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from simplestack.serving.errors import HttpError

CURL = "send it as curl -F image=@image.jpg does"


class Parser(MultiPartParser):
    """Keeps files in memory: there may be no disk."""

    spool_max_size = sys.maxsize


async def image_of(request: Request, body: bytearray) -> bytes | bytearray:
    """Return the body, or the first file in it if it is a form. Raises HttpError if it has none."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return body

    async def stream() -> AsyncGenerator[bytes, None]:
        yield bytes(body)

    try:
        form = await Parser(request.headers, stream()).parse()
    except MultiPartException as error:
        raise HttpError(f"The form is damaged: {CURL}.") from error
    body.clear()  # or the picture would be held twice
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            return await value.read()
    raise HttpError(f"The form has no file: {CURL}.")
