"""The gate in front of BentoML's parser: it hands on opened images, and answers everything else.

BentoML 1.4 downloads a URL that is sent as the body of an image API, and answers 500 to most
things that are no image. So its parser is left out: `from_gate` gives the API what was opened here.
"""

import asyncio
import hmac
from http import HTTPStatus
from typing import Any

from PIL.Image import Image
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from simplestack.serving import images
from simplestack.serving.errors import StackError
from simplestack.serving.settings import Settings

PATH = "/predict"
EXPLAIN = {"0": False, "1": True}
PATIENCE = 4
"""How many times MAX_BYTES are taken in, though not kept, before the connection is closed: who is
still sending when that happens may never see why."""


HOLD = 8
"""How many times MAX_BYTES the bodies in hand may take together, in a worker."""


class RefusedError(StackError):
    """A request that is answered at the gate."""

    def __init__(self, status: HTTPStatus, message: str, **headers: str) -> None:
        """Say with which status, which sentence and which headers (`retry_after="1"`)."""
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


STATUS = {
    images.BadImageError: HTTPStatus.BAD_REQUEST,
    images.UnsupportedFormatError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    images.TooManyPixelsError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}
"""Which status an image that can't be used is answered with."""


def error_response(error: StackError) -> JSONResponse:
    """Answer `{"error": "…"}` with the status of the error."""
    status = error.status if isinstance(error, RefusedError) else STATUS[type(error)]
    headers = error.headers if isinstance(error, RefusedError) else None
    return JSONResponse({"error": str(error)}, status, headers)


class Gate:
    """ASGI middleware that admits to /predict what BentoML can answer, and answers the rest."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Stand in front of `app`."""
        self.app = app
        self.settings = settings
        self.admitted = 0  # requests that BentoML is working on or that wait for it
        self.held = 0  # bytes of bodies in hand

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on with an opened image."""
        if scope["type"] != "http" or scope["path"] != PATH:
            return await self.app(scope, receive, send)
        answer = _Answer(send)
        work = asyncio.create_task(self._answer(scope, receive, answer))
        try:
            await asyncio.wait({work}, timeout=self.settings.timeout)
            if work.done() or answer.begun:
                return await work
            # Not waited for: a thread can't be stopped, and whatever it still says is dropped.
            answer.replaced = True
            late = RefusedError(
                HTTPStatus.GATEWAY_TIMEOUT,
                f"There was no answer within {self.settings.timeout} seconds: try again later, or"
                " with a smaller picture.",
            )
            await error_response(late)(scope, receive, send)
        finally:
            work.cancel()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        request.state.held = 0
        try:
            await self._hand_on(request, send)
        finally:
            self.held -= request.state.held

    async def _hand_on(self, request: Request, send: Send) -> None:
        scope, receive = request.scope, request.receive
        try:
            request.state.image = await self._admit(request)
        except ClientDisconnect:
            return None  # nobody is there to be answered
        except StackError as error:
            return await error_response(error)(scope, receive, send)
        self.admitted += 1
        try:
            await self.app(_without_body_headers(scope), receive, send)
        finally:
            self.admitted -= 1

    async def _admit(self, request: Request) -> Image:
        """Open the encoded image in a request. Raises StackError for anything else."""
        if request.method != "POST":
            raise RefusedError(
                HTTPStatus.METHOD_NOT_ALLOWED, f"Use POST for {PATH}, with an image.", allow="POST"
            )
        self._check_token(request.headers)
        explain = request.query_params.get("explain", "0")
        if explain not in EXPLAIN:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"explain={explain!r} is neither 0 nor 1.")
        request.state.explain = EXPLAIN[explain]
        body = await self._read(request)
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            body = await _first_file(request, body)
        image = images.identify(body, self.settings.max_pixels)
        if self.admitted >= self.settings.max_requests:
            raise _busy()
        return image

    def _check_token(self, headers: Headers) -> None:
        if not self.settings.api_token:
            return
        expected = f"Bearer {self.settings.api_token}".encode()
        if not hmac.compare_digest(headers.get("authorization", "").encode("latin-1"), expected):
            raise RefusedError(
                HTTPStatus.UNAUTHORIZED,
                "The token is missing or wrong: send the header 'Authorization: Bearer <token>'.",
                www_authenticate="Bearer",
            )

    async def _read(self, request: Request) -> bytes:
        most = self.settings.max_bytes
        too_long = RefusedError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The body has more than the {most:,} bytes that are read: send a smaller image.",
            connection="close",
        )
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > PATIENCE * most:
            raise too_long
        body, size = bytearray(), 0
        async for chunk in request.stream():
            size += len(chunk)
            if size <= most:
                body += chunk
                self.held += len(chunk)
                request.state.held += len(chunk)
                if self.held > HOLD * most:
                    raise _busy(connection="close")
            elif size > PATIENCE * most:
                raise too_long
        if size > most:
            raise too_long
        return bytes(body)


def _busy(**headers: str) -> RefusedError:
    return RefusedError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Too many requests at once: try again in a second.",
        retry_after="1",
        **headers,
    )


async def _first_file(request: Request, body: bytes) -> bytes:
    """Unwrap the first file of a multipart form, which is what `curl -F` sends."""
    try:
        async with Request(request.scope, _replay(body, request.receive)).form() as form:
            for _, value in form.multi_items():
                if isinstance(value, UploadFile):
                    return await value.read()
    except (MultiPartException, HTTPException) as error:
        raise RefusedError(
            HTTPStatus.BAD_REQUEST, "The form is damaged: send it as curl -F image=@image.jpg does."
        ) from error
    raise RefusedError(
        HTTPStatus.BAD_REQUEST, "The form has no file: add one, as curl -F image=@image.jpg does."
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Make a `receive` that gives the whole body first."""
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return rest.pop() if rest else await receive()

    return replay


def _without_body_headers(scope: Scope) -> Scope:
    """Describe no body: by its content type BentoML would choose a parser, or refuse it."""
    headers = [item for item in scope["headers"] if not item[0].startswith(b"content-")]
    return {**scope, "headers": headers}


def from_gate(spec: Any) -> Any:
    """Make of BentoML's input specification one that takes the image that the gate has opened."""

    class Admitted(spec):  # type: ignore[misc]  # a class that BentoML has made
        @classmethod
        async def from_http_request(cls, request: Request, _: Any) -> Any:
            return cls.model_construct(root=request.state.image)

    return Admitted


class _Answer:
    """A `send` whose answer can be replaced as long as it hasn't begun."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.begun = False
        self.replaced = False

    async def __call__(self, message: Message) -> None:
        if not self.replaced:
            self.begun = True
            await self.send(message)
