"""The picture in a request: its body, a file in it, or base64 in JSON."""

import asyncio
import base64
import json
import re
import sys
import time
from collections.abc import AsyncGenerator

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from simplestack.serving.errors import BadImageError

CURL = "send it as curl -F image=@image.jpg does"
BOUNDARY = re.compile(rb"[\w'()+,./:=? -]{1,70}", re.ASCII)  # RFC 2046
CHUNK = 2**14  # bytes that are parsed before others have their turn
TOP_K = re.compile("[1-9][0-9]{,5}")
NO_TOP_K = "top_k is not a number from 1 to 999999."
INPUTS = re.compile(rb'"inputs"\s*+:\s*+"([\w+/=\\]*+)"', re.ASCII)  # base64
LONGEST = 1000  # bytes of JSON around it: parsed, a few MB may take hundreds
JSON = 'send {"inputs": the image in base64, "parameters": {"top_k": 5}}, or the bytes of the image'
SECONDS = 0.5  # of CPU time, for a form: some padding is read byte by byte


class Parser(MultiPartParser):
    """Keeps files in memory: there may be no disk."""

    spool_max_size = sys.maxsize


async def image_of(request: Request, body: bytearray) -> bytes | bytearray:
    """Return the body, or the first file in a form. Raises BadImageError if it has none."""
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
        raise BadImageError(f"The form is damaged: {CURL}.")
    headers = Headers({"content-type": f'multipart/form-data; boundary="{boundary.decode()}"'})
    try:
        form = await Parser(headers, stream()).parse()
    except MultiPartException as error:
        raise BadImageError(f"The form is damaged: {CURL}.") from error
    body.clear()  # or the picture would be held twice
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            return await value.read()
    raise BadImageError(f"The form has no file: {CURL}.")


def is_json(request: Request) -> bool:
    """Return whether a request says that its body is JSON."""
    return request.headers.get("content-type", "").lower().startswith("application/json")


def inputs_of(body: bytearray) -> tuple[bytes | bytearray, bytes]:
    """Return the image in JSON as Hugging Face's clients send it, and its parameters as a query.

    Raises BadImageError if the JSON is another.
    """
    found = INPUTS.search(body)
    if not found or len(body) - len(found[1]) > LONGEST:
        raise BadImageError(f"This JSON has no image: {JSON}.")
    try:
        image = base64.b64decode(found[1].replace(b"\\", b""), validate=True)
        around = json.loads(body[: found.start(1)] + body[found.end(1) :])
        parameters = around.get("parameters") or {}
        top_k, function = parameters.get("top_k"), parameters.get("function_to_apply")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BadImageError(f"This JSON has no image: {JSON}.") from error
    body.clear()  # or the picture would be held twice
    if function not in (None, "softmax"):  # a set would hash what may be a dict
        raise BadImageError("function_to_apply is another than softmax.")
    if top_k is None:
        return image, b""
    if type(top_k) is not int or not TOP_K.fullmatch(str(top_k)):
        raise BadImageError(NO_TOP_K)
    return image, f"top_k={top_k}".encode()
