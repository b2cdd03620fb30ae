"""The gate in front of BentoML's /predict: it decodes pictures, and answers everything else.

BentoML 1.4 downloads a URL that is sent as the body of an image API, and answers 500 to most
things that are no image. Here, it gets nothing but a form with a 224×224 PPM picture.
"""

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from simplestack.serving import errors, images, settings
from simplestack.serving.telemetry import timed

CURL = "send it as curl -F image=@image.jpg does"
BUSY = "Too many requests at once: try again in a second."
BUFFERED = 8  # times MAX_BYTES that the bodies in flight may take together, in a worker
DRAINED = 4  # times MAX_BYTES that are read: a client that is still sending may not see the answer
BOUNDARY = secrets.token_hex(16)  # which no picture can know
FORM = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image.ppm"\r\n'
    f"Content-Type: image/ppm\r\n\r\nP6 {images.CROP} {images.CROP} 255\n%b\r\n--{BOUNDARY}--\r\n"
).encode()


class Gate:
    """ASGI middleware around /predict. Raises an HttpError for what it doesn't forward."""

    def __init__(self, app: ASGIApp, path: str, threads: int) -> None:
        self.app, self.path, self.settings = app, path, settings.read()
        self.decoders = ThreadPoolExecutor(threads)
        self.in_flight = asyncio.Semaphore(self.settings.max_requests)  # with a complete body
        self.buffered = 0  # bytes of all bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the picture in a request to `path`, and other requests as they are."""
        if scope["type"] != "http" or scope["path"].rstrip("\n") != self.path:  # as BentoML does
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        self.check_head(request)
        try:
            async with asyncio.timeout(self.settings.timeout), self.body(request) as body:
                image = await image_of(request, body)
                if self.in_flight.locked():
                    raise errors.BusyError(BUSY)
                async with self.in_flight:
                    photo = await self.decode(request, image)
                    await self.app(*with_photo(scope, photo), send)
        except ClientDisconnect:
            pass  # nobody waits for an answer
        except TimeoutError:
            raise errors.LateError(
                f"There was no answer within {self.settings.timeout} seconds: try again later, or"
                " with a smaller picture."
            ) from None

    def check_head(self, request: Request) -> None:
        """Check all that is known before the body arrives."""
        if request.method != "POST":
            raise errors.MethodNotAllowedError(f"Use POST for {self.path}, with an image.")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.encode("latin-1"), self.settings.api_token.encode())
        if self.settings.api_token and not (right and scheme.lower() == "bearer"):
            raise errors.UnauthorizedError(
                "The token is missing or wrong: send the header 'Authorization: Bearer <token>'."
            )
        if request.query_params.get("explain", "0") not in {"0", "1"}:
            raise errors.HttpError("explain is neither 0 nor 1.")

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body, and count its bytes as buffered until it is no longer needed."""
        limit, body, size = self.settings.max_bytes, bytearray(), 0
        too_large = errors.BodyTooLargeError(
            f"The body has more than the {limit:,} bytes that are read: send a smaller image."
        )
        if int(request.headers.get("content-length", 0)) > DRAINED * limit:
            raise too_large
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > DRAINED * limit:
                    break
                if size <= limit:
                    body += chunk
                    self.buffered += len(chunk)
                    if self.buffered > BUFFERED * limit:
                        raise errors.BusyError(BUSY)
            if size > limit:
                raise too_large
            yield bytes(body)
        finally:
            self.buffered -= len(body)

    async def decode(self, request: Request, image: bytes) -> images.Photo:
        """Decode an image in a thread. The time-out can't stop one that has begun."""

        def read() -> images.Photo:
            with timed(request.state, "decode"):
                return images.read(image, self.settings.max_pixels)

        return await asyncio.get_running_loop().run_in_executor(self.decoders, read)


async def image_of(request: Request, body: bytes) -> bytes:
    """Return the body, or the first file in it if it is a form. Raises HttpError if it has none."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return body
    try:
        async with Request(request.scope, replay(body)).form() as form:
            for _, value in form.multi_items():
                if isinstance(value, UploadFile):
                    return await value.read()
    except HTTPException as error:
        raise errors.HttpError(f"The form is damaged: {CURL}.") from error
    raise errors.HttpError(f"The form has no file: {CURL}.")


def replay(body: bytes) -> Receive:
    """Return a `receive` that returns the whole body at once."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def with_photo(scope: Scope, photo: images.Photo) -> tuple[Scope, Receive]:
    """Return the request that is forwarded: a form with the photo as PPM in place of the body."""
    headers = [item for item in scope["headers"] if not item[0].startswith(b"content-")]
    headers.append((b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode()))
    return {**scope, "headers": headers}, replay(FORM % photo.tobytes())
