"""The picture in a request: its body, or a file in it."""

import asyncio
import re
import sys
import time
from collections.abc import AsyncGenerator

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from simplestack.serving.errors import HttpError

CURL = "send it as curl -F image=@image.jpg does"
BOUNDARY = re.compile(rb"[\w'()+,./:=? -]{1,70}", re.ASCII)  # RFC 2046
CHUNK = 2**14  # bytes that are parsed before others have their turn
SECONDS = 0.5  # of CPU time, for a form: some padding is read byte by byte


class Parser(MultiPartParser):
    """Keeps files in memory: there may be no disk."""

    spool_max_size = sys.maxsize


async def image_of(request: Request, body: bytearray) -> bytes | bytearray:
    """Return the body, or the first file in it if it is a form. Raises HttpError if it has none."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return body

    async def stream() -> AsyncGenerator[bytes, None]:
        spent = 0.0
        for start in range(0, len(body), CHUNK):
            began = time.thread_time()
            yield bytes(body[start : start + CHUNK])  # returns once that is parsed
            spent += time.thread_time() - began
            if spent > SECONDS:
                raise MultiPartException("takes too long")
            await asyncio.sleep(0)

    # Of the header, the parser gets nothing else: a charset would choose the decoder of fields.
    _, options = parse_options_header(request.headers["content-type"])
    if not BOUNDARY.fullmatch(boundary := options.get(b"boundary", b"")):
        raise HttpError(f"The form is damaged: {CURL}.")
    headers = Headers({"content-type": f'multipart/form-data; boundary="{boundary.decode()}"'})
    try:
        form = await Parser(headers, stream()).parse()
    except MultiPartException as error:
        raise HttpError(f"The form is damaged: {CURL}.") from error
    body.clear()  # or the picture would be held twice
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            return await value.read()
    raise HttpError(f"The form has no file: {CURL}.")
