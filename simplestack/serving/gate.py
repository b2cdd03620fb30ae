"""The gate in front of BentoML's APIs: it decodes pictures, and rejects all other bodies.

BentoML 1.4 downloads a URL that is sent as the body of an image API, and answers 500 to most bodies
that are no image. Behind the gate, it gets nothing but a form with a 224×224 PPM picture.

The gate decides on 401, 405, 503, 504, and on 413 for a body with too many bytes. Pictures that are
too large or too heavy are 413, too: errors.py has the statuses of pictures, images.py and
decoder_pool.py the limits.
"""

import asyncio
import hmac
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from simplestack.serving import images
from simplestack.serving.decoder_pool import RETRY_AFTER, Decoders
from simplestack.serving.settings import Settings
from simplestack.serving.site import CLASSIFY, PREDICT
from simplestack.serving.telemetry import timed

BUSY = "Too many requests at once: try again in a second."
NO_ANSWER = (
    "There was no answer within {seconds} seconds: try again later, or with a smaller picture."
)
UNAUTHORIZED = "The token is missing or wrong: send the header 'Authorization: Bearer <token>'."
TOO_MANY_BYTES = "The body has more than the {limit:,} bytes that are read: send a smaller image."
NO_TOP_K = "top_k is not a number from 1 to 999999."
TOP_K = re.compile("[1-9][0-9]{,5}")
BUFFERED = 5  # × MAX_BYTES is the limit of all bodies in flight together, per worker
DRAINED = 4  # × MAX_BYTES are read before an error is sent: many clients read only after sending
BOUNDARY = secrets.token_hex(16)  # no picture can contain it: it is chosen at the start
FORM = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image.ppm"\r\n'
    f"Content-Type: image/ppm\r\n\r\nP6 {images.CROP} {images.CROP} 255\n%b\r\n--{BOUNDARY}--\r\n"
).encode()


class Gate:
    """ASGI middleware around the APIs. Raises HTTPException or ImageError to reject a request."""

    def __init__(self, app: ASGIApp, settings: Settings, cores: int) -> None:
        self.app, self.settings = app, settings
        self.decoders = Decoders(settings, cores)
        self.in_flight = asyncio.Semaphore(settings.max_requests)  # with a complete body
        self.buffered = 0  # bytes of all bodies in flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request to an API with its picture decoded, and other requests unchanged."""
        if scope["type"] == "lifespan":
            async with self.decoders:
                return await self.app(scope, receive, send)
        if scope["path"] == "/readyz":
            await self.decoders.check()
        if scope["type"] != "http" or scope["path"] not in {PREDICT, CLASSIFY}:
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        try:
            async with asyncio.timeout(self.settings.timeout), self.body(request) as body:
                content_type = request.headers.get("content-type", "")
                if scope["path"] == PREDICT and content_type.lower().startswith("application/json"):
                    content_type = ""  # only /classify takes JSON
                if self.in_flight.locked():
                    raise HTTPException(503, BUSY, RETRY_AFTER)
                async with self.in_flight:
                    with timed(request.state, "decode"):
                        photo, top_k = await self.decoders.decode(body, content_type)
                    if top_k and not TOP_K.fullmatch(top_k):
                        raise HTTPException(400, NO_TOP_K)
                    await self.app(*with_photo(scope, photo, top_k), send)
        except ClientDisconnect:
            pass  # there is no client to answer
        except TimeoutError:
            raise HTTPException(504, NO_ANSWER.format(seconds=self.settings.timeout)) from None

    def head_error(self, request: Request) -> HTTPException | None:
        """Return the error for a wrong method, token or query string, else None."""
        if request.method != "POST":
            sentence = f"Use POST for {request.url.path}, with an image."
            return HTTPException(405, sentence, {"Allow": "POST"})
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        correct = hmac.compare_digest(token.encode("latin-1"), self.settings.api_token.encode())
        if self.settings.api_token and not (correct and scheme.lower() == "bearer"):
            return HTTPException(401, UNAUTHORIZED, {"WWW-Authenticate": "Bearer"})
        for name in ("explain", "picture"):
            if request.query_params.get(name, "0") not in {"0", "1"}:
                return HTTPException(400, f"{name} is neither 0 nor 1.")
        if not TOP_K.fullmatch(request.query_params.get("top_k", "1")):
            return HTTPException(400, NO_TOP_K)
        return None

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytearray]:
        """Read the body, and count its bytes as buffered until it is no longer needed.

        If the request is rejected, reads up to DRAINED × MAX_BYTES first. Raises HTTPException.
        """
        body, limit, size = bytearray(), self.settings.max_bytes, 0
        too_many = HTTPException(413, TOO_MANY_BYTES.format(limit=limit), {"Connection": "close"})
        announced = int(request.headers.get("content-length", 0))
        error = self.head_error(request) or (too_many if announced > limit else None)
        if error and ("expect" in request.headers or announced > DRAINED * limit):
            raise error
        try:
            async for chunk in request.stream():
                size += len(chunk)
                # The more is buffered, the less may be added: small pictures pass large ones.
                free = BUFFERED * limit - self.buffered - len(chunk)
                if size > limit:
                    error = error or too_many
                elif size > free:
                    error = error or HTTPException(503, BUSY, RETRY_AFTER)
                if size > DRAINED * limit:
                    break
                if error:
                    self.buffered -= len(body)
                    body.clear()
                else:
                    self.buffered += len(chunk)
                    body += chunk
            if error:
                raise error
            yield body
        finally:
            self.buffered -= len(body)


def with_photo(scope: Scope, photo: bytes, top_k: str) -> tuple[Scope, Receive]:
    """Return the request to forward: a form with `photo`, 224×224×3 uint8, as PPM is its body.

    `top_k`, unless empty, replaces the query string.
    """
    headers = [item for item in scope["headers"] if not item[0].startswith(b"content-")]
    headers.append((b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode()))
    query = f"top_k={top_k}".encode() if top_k else scope["query_string"]

    async def receive() -> Message:
        return {"type": "http.request", "body": FORM % photo, "more_body": False}

    return {**scope, "headers": headers, "query_string": query}, receive
