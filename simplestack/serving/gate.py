"""The gate in front of BentoML's APIs: it decodes pictures, and answers everything else.

BentoML 1.4 downloads a URL that is sent as the body of an image API, and answers 500 to most
things that are no image. Here, it gets nothing but a form with a 224×224 PPM picture.
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

from simplestack.serving import images, settings
from simplestack.serving.body import NO_TOP_K
from simplestack.serving.decoder_pool import RETRY, Decoders
from simplestack.serving.site import CLASSIFY, PREDICT
from simplestack.serving.telemetry import timed

BUSY = "Too many requests at once: try again in a second."
LATE = "There was no answer within {seconds} seconds: try again later, or with a smaller picture."
UNAUTHORIZED = "The token is missing or wrong: send the header 'Authorization: Bearer <token>'."
TOO_LARGE = "The body has more than the {limit:,} bytes that are read: send a smaller image."
TOP_K = re.compile("[1-9][0-9]{,5}")
BUFFERED = 5  # × MAX_BYTES may be held by the bodies in flight together, in a worker
DRAINED = 4  # × MAX_BYTES are read before an error is sent: many clients read only after sending
BOUNDARY = secrets.token_hex(16)  # which no picture can know
FORM = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image.ppm"\r\n'
    f"Content-Type: image/ppm\r\n\r\nP6 {images.CROP} {images.CROP} 255\n%b\r\n--{BOUNDARY}--\r\n"
).encode()


class Gate:
    """ASGI middleware around the APIs. Raises HTTPException or ImageError if it rejects."""

    def __init__(self, app: ASGIApp, cores: int) -> None:
        self.app, self.settings = app, settings.read()
        self.decoders = Decoders(self.settings, cores)
        self.in_flight = asyncio.Semaphore(self.settings.max_requests)  # with a complete body
        self.buffered = 0  # bytes of all bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the picture in a request to an API, and other requests as they are."""
        if scope["type"] == "lifespan":
            async with self.decoders:
                return await self.app(scope, receive, send)
        if scope["type"] != "http" or scope["path"] not in {PREDICT, CLASSIFY}:
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        try:
            async with asyncio.timeout(self.settings.timeout), self.body(request) as body:
                content_type = request.headers.get("content-type", "")
                if scope["path"] == PREDICT and content_type.lower().startswith("application/json"):
                    content_type = ""  # it takes a picture under any other type
                if self.in_flight.locked():
                    raise HTTPException(503, BUSY, RETRY)
                async with self.in_flight:
                    with timed(request.state, "decode"):
                        photo, query = await self.decoders.decode(body, content_type)
                    await self.app(*with_photo(scope, photo, query), send)
        except ClientDisconnect:
            pass  # there is no client to answer
        except TimeoutError:
            raise HTTPException(504, LATE.format(seconds=self.settings.timeout)) from None

    def refusal(self, request: Request) -> HTTPException | None:
        """Return the error for a request whose head is wrong, else None."""
        if request.method != "POST":
            sentence = f"Use POST for {request.url.path}, with an image."
            return HTTPException(405, sentence, {"Allow": "POST"})
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(token.encode("latin-1"), self.settings.api_token.encode())
        if self.settings.api_token and not (right and scheme.lower() == "bearer"):
            return HTTPException(401, UNAUTHORIZED, {"WWW-Authenticate": "Bearer"})
        if request.query_params.get("explain", "0") not in {"0", "1"}:
            return HTTPException(400, "explain is neither 0 nor 1.")
        if not TOP_K.fullmatch(request.query_params.get("top_k", "1")):
            return HTTPException(400, NO_TOP_K)
        if int(request.headers.get("content-length", 0)) > self.settings.max_bytes:
            return self.too_large()
        return None

    def too_large(self) -> HTTPException:
        """Return the error for a body of too many bytes."""
        sentence = TOO_LARGE.format(limit=self.settings.max_bytes)
        return HTTPException(413, sentence, {"Connection": "close"})

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytearray]:
        """Read the body, and count its bytes as buffered until it is no longer needed.

        Bodies of rejected requests are read, too, up to a limit.
        """
        body, size, limit = bytearray(), 0, self.settings.max_bytes
        refusal, drained = self.refusal(request), DRAINED * limit
        announced = int(request.headers.get("content-length", 0))
        if refusal and ("expect" in request.headers or announced > drained):
            raise refusal
        kept = 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    refusal = refusal or self.too_large()
                if size > drained:
                    break
                if not refusal:
                    body += chunk
                    kept = size
                    self.buffered += len(chunk)
                    # The more is buffered, the less may be added: small pictures pass large ones.
                    if size > BUFFERED * limit - self.buffered:
                        raise HTTPException(503, BUSY, RETRY)
            if refusal:
                raise refusal
            yield body
        finally:
            self.buffered -= kept


def with_photo(scope: Scope, photo: bytes, query: bytes) -> tuple[Scope, Receive]:
    """Return the request that is forwarded: a form with the photo as PPM in place of the body."""
    headers = [item for item in scope["headers"] if not item[0].startswith(b"content-")]
    headers.append((b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode()))
    query = query or scope["query_string"]

    async def receive() -> Message:
        return {"type": "http.request", "body": FORM % photo, "more_body": False}

    return {**scope, "headers": headers, "query_string": query}, receive
