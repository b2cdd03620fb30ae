"""The gate in front of BentoML's /predict: it decodes pictures, and answers everything else.

BentoML 1.4 downloads a URL that is sent as the body of an image API, and answers 500 to most
things that are no image. Here, it gets nothing but a form with a 224×224 PPM picture.
"""

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio.to_thread
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from simplestack.serving import images, settings, telemetry
from simplestack.serving.errors import (
    BodyTooLargeError,
    BusyError,
    HttpError,
    LateError,
    MethodNotAllowedError,
    UnauthorizedError,
)
from simplestack.serving.images import Photo

DRAINED = 4
"""How many times MAX_BYTES are read, though not kept, before the connection is closed: a client
that is still sending when that happens may never see why."""

BUFFERED = 8
"""How many times MAX_BYTES the bodies in flight may take together, in a worker."""

BOUNDARY = secrets.token_hex(16).encode()  # which no picture can know
FORM = (
    b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="image"; filename="image.ppm"'
    b"\r\nContent-Type: image/ppm\r\n\r\n"
    + f"P6 {images.CROP} {images.CROP} 255\n".encode()
    + b"%b\r\n--"
    + BOUNDARY
    + b"--\r\n"
)


class Gate:
    """ASGI middleware around /predict. Raises an HttpError for what it doesn't forward."""

    def __init__(self, app: ASGIApp, path: str, threads: int) -> None:
        """Guard `path`, with so many pictures decoded at once."""
        self.app = app
        self.path = path
        self.settings = settings.read()
        self.threads = anyio.CapacityLimiter(threads)
        self.buffered = 0  # bytes of bodies
        self.admitted = 0  # requests whose body is complete

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the picture in a request to /predict, and all other requests as they are."""
        if scope["type"] != "http" or scope["path"] != self.path:
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        self.check(request)
        try:
            async with asyncio.timeout(self.settings.timeout), self.body(request) as body:
                image = await first_file(request, body) if is_form(request) else body
                with self.admission():
                    photo = await self.decode(request, image)
                    await self.app(*with_photo(scope, photo), send)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except TimeoutError:
            raise LateError(
                f"There was no answer within {self.settings.timeout} seconds: try again later, or"
                " with a smaller picture."
            ) from None

    def check(self, request: Request) -> None:
        """Check all that is known before the body."""
        if request.method != "POST":
            raise MethodNotAllowedError(f"Use POST for {self.path}, with an image.")
        expected = f"Bearer {self.settings.api_token}".encode()
        given = request.headers.get("authorization", "").encode("latin-1")
        if self.settings.api_token and not hmac.compare_digest(given, expected):
            raise UnauthorizedError(
                "The token is missing or wrong: send the header 'Authorization: Bearer <token>'."
            )
        explain = request.query_params.get("explain", "0")
        if explain not in {"0", "1"}:
            raise HttpError(f"explain={explain!r} is neither 0 nor 1.")

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body, and count its bytes for as long as they are needed."""
        limit, body, size = self.settings.max_bytes, bytearray(), 0
        too_large = BodyTooLargeError(
            f"The body has more than the {limit:,} bytes that are read: send a smaller image."
        )
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > DRAINED * limit:
            raise too_large
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > DRAINED * limit:
                    raise too_large
                if size <= limit:
                    body += chunk
                    self.buffered += len(chunk)
                    if self.buffered > BUFFERED * limit:
                        raise busy()
            if size > limit:
                raise too_large
            yield bytes(body)
        finally:
            self.buffered -= len(body)

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Count a request as one that is worked on, or waits for that."""
        if self.admitted >= self.settings.max_requests:
            raise busy()
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1

    async def decode(self, request: Request, image: bytes) -> Photo:
        """Decode an image in a thread, which keeps its place until it ends: it can't be stopped."""

        def read() -> Photo:
            with telemetry.timed(request.state, "decode"):
                return images.read(image, self.settings.max_pixels)

        work = asyncio.ensure_future(anyio.to_thread.run_sync(read, limiter=self.threads))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may ask
        return await asyncio.shield(work)


def busy() -> BusyError:
    """Say that there are too many requests."""
    return BusyError("Too many requests at once: try again in a second.")


def is_form(request: Request) -> bool:
    """Tell whether the body is a form, as `curl -F` sends it."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def first_file(request: Request, body: bytes) -> bytes:
    """Return the content of the first file in a form."""
    try:
        async with Request(request.scope, replayed(body)).form() as form:
            for _, value in form.multi_items():
                if isinstance(value, UploadFile):
                    return await value.read()
    except (MultiPartException, HTTPException) as error:
        raise HttpError("The form is damaged: send it as curl -F image=@image.jpg does.") from error
    raise HttpError("The form has no file: add one, as curl -F image=@image.jpg does.")


def replayed(body: bytes) -> Receive:
    """Return a `receive` that returns the whole body at once."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def with_photo(scope: Scope, photo: Photo) -> tuple[Scope, Receive]:
    """Return a request like another one, with a form that has a decoded photo in it."""
    headers = [item for item in scope["headers"] if not item[0].startswith(b"content-")]
    headers.append((b"content-type", b"multipart/form-data; boundary=" + BOUNDARY))
    return {**scope, "headers": headers}, replayed(FORM % photo.tobytes())
