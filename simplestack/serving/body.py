"""The picture in the body of a request: the body itself, a file in a form, or base64 in JSON.

A body is as untrusted as a picture, so decoders unpack it.
"""

import base64
import json
import math
import re

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File, FormParser, parse_options_header

from simplestack.serving.errors import BadImageError

MAKE_A_FORM = "send it as curl -F image=@image.jpg does"
NO_BOUNDARY = (
    "Content-Type: multipart/form-data has no boundary: don't set this header, so that the client"
    " sets it with one, or send the bytes of the image as image/*."
)
NO_INPUTS = (
    'This JSON has no image: send {"inputs": the image in base64, "parameters": {"top_k": 5}}, or'
    " the bytes of the image."
)


def unpack(body: bytes, content_type: str) -> tuple[bytes, bytes]:
    """Return the picture, and `top_k` as JSON if the body is JSON with it. Raises BadImageError."""
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        if b"boundary" not in options:
            raise BadImageError(NO_BOUNDARY)
        return unpack_form(body, options[b"boundary"]), b""
    if kind == b"application/json":
        return unpack_json(body)
    return body, b""


def unpack_form(body: bytes, boundary: bytes) -> bytes:
    """Return the first file in a form. Raises BadImageError if there is none."""
    files: list[File] = []
    in_memory = {"MAX_MEMORY_FILE_SIZE": math.inf}  # there may be no disk
    try:
        parser = FormParser(
            "multipart/form-data", None, files.append, boundary=boundary, config=in_memory
        )
        parser.write(body)
    except FormParserError as error:
        raise BadImageError(f"The form is damaged: {MAKE_A_FORM}.") from error
    if not files:
        raise BadImageError(f"The form has no file: {MAKE_A_FORM}.")
    files[0].file_object.seek(0)
    return files[0].file_object.read()


def unpack_json(body: bytes) -> tuple[bytes, bytes]:
    """Return the picture in JSON as Hugging Face's clients send it, and its `top_k` as JSON.

    Raises BadImageError for other JSON, and for another function than softmax.
    """
    try:
        content = json.loads(body)
        encoded = re.sub("^data:image/[^,]*,", "", content["inputs"])  # as FileReader makes it
        picture = base64.b64decode(encoded, validate=True)
        parameters = content.get("parameters") or {}
        top_k, function = parameters.get("top_k"), parameters.get("function_to_apply")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadImageError(NO_INPUTS) from error
    if function not in (None, "softmax"):  # no set, as a dict can't be hashed
        raise BadImageError("function_to_apply is not softmax.")
    return picture, b"" if top_k is None else json.dumps(top_k).encode()
