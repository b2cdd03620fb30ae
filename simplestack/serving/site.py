"""The routes of the service, and what it shows of itself: its page, its API and its model."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from simplestack.serving import settings, telemetry
from simplestack.serving.inference import Metadata
from simplestack.serving.responses import ROUTER_HANDLERS, JsonLine

PREDICT, CLASSIFY = "/predict", "/classify"
DESCRIPTIONS = "/docs.json", "/openapi.json"
EXAMPLES = ("examples/1.jpg", "examples/2.jpg", "examples/3.jpg")  # photos, if they are packed
PATHS = {PREDICT, CLASSIFY, "/", "/docs", *DESCRIPTIONS, "/model.json"}
PATHS |= {f"/{name}" for name in EXAMPLES}
MAX_NAMED = 5  # classes in the title
PROBES = {"/livez", "/readyz", "/healthz", "/metrics"}  # asked every few seconds
BENTOMLS = re.compile("/schema.json|/static_content/.*")  # for its own client, and for /docs
HERE = Path(__file__).parent
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def cors(app: ASGIApp) -> ASGIApp:
    """Let the pages of CORS_ORIGINS ask from a browser."""
    if not (origins := settings.read().cors_origins):
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
    )


def closed(app: ASGIApp) -> ASGIApp:
    """Answer unknown paths with 404 in JSON. BentoML uses plain text, and matches /predict%0a."""
    known = PATHS | PROBES

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "/")
        if path not in known and not BENTOMLS.fullmatch(path):
            raise HTTPException(404, "There is nothing at this path.")
        await app(scope, receive, send)

    return refuse


def site(about: Callable[[], Metadata]) -> Starlette:
    """Build the app for all that is not a prediction; `about` returns the model's metadata."""
    index = (HERE / "web" / "index.html").read_text()
    docs = (HERE / "web" / "docs.html").read_text()
    # Swagger UI, which comes with BentoML, styles its elements inline.
    swagger = _policy(script="'self'", style="'self' 'unsafe-inline'", img="'self' data:")

    def page(html: str, policy: str) -> Callable[[Request], Response]:
        headers = {**HEADERS, "Content-Security-Policy": f"{policy}; frame-ancestors 'none'"}
        return lambda _: HTMLResponse(html, headers=headers)

    def model(_: Request) -> Response:
        return JsonLine(model_json(about()), headers=HEADERS)

    def example(request: Request) -> Response:
        photo = examples(about()).get(request.scope["path"].removeprefix("/"))
        if not photo:
            raise HTTPException(404, "The photos are not shown.")
        return Response(photo, media_type="image/jpeg", headers=HEADERS)

    def document(_: Request) -> Response:
        token = bool(settings.read().api_token)
        return JsonLine(openapi(about()["classes"], token=token), headers=HEADERS)

    app = Starlette(
        routes=[
            Route("/", page(index, policy_for(index))),
            Route("/docs", page(docs, swagger)),
            *(Route(path, document) for path in DESCRIPTIONS),
            Route("/model.json", model),
            Route("/metrics", telemetry.metrics),
            *(Route(f"/{name}", example) for name in EXAMPLES),
        ],
        exception_handlers=ROUTER_HANDLERS,
    )
    app.router.redirect_slashes = False  # such a redirect names the host as the client does
    return app


def openapi(classes: list[str], *, token: bool) -> dict[str, Any]:
    """Describe the API for some classes; with a `token`, where one is asked for."""
    document: dict[str, Any] = json.loads((HERE / "openapi.json").read_text())
    document["info"]["title"] = title(classes)
    schemas, paths = document["components"]["schemas"], document["paths"]
    prediction = schemas["Prediction"]["properties"]
    for schema in (prediction, schemas["Score"]["properties"]):
        schema["label"]["enum"] = classes
    prediction["probabilities"]["properties"] = dict.fromkeys(classes, prediction["confidence"])
    if not token:
        del document["components"]["securitySchemes"]
        for path in (PREDICT, CLASSIFY):
            del paths[path]["post"]["security"], paths[path]["post"]["responses"]["401"]
    return document


def model_json(about: Metadata) -> dict[str, Any]:
    """Return the metadata and the title, with the example photos' paths in place of the photos."""
    return {**about, "title": title(about["classes"]), "examples": list(examples(about))}


def examples(about: Metadata) -> dict[str, bytes]:
    """Return the example photos, JPEGs, by their paths."""
    return dict(zip(EXAMPLES, map(base64.b64decode, about["examples"]), strict=False))


def title(classes: list[str]) -> str:
    """Return the question that a photo answers, with the names of up to 5 classes."""
    few = f"{', '.join(classes[:-1])} or {classes[-1]}"
    named = few if len(classes) <= MAX_NAMED else f"{len(classes)} kinds of things"
    return f"{named[:1].upper()}{named[1:]}?"


def policy_for(html: str, script: str = "") -> str:
    """Return the Content-Security-Policy of the page: its own scripts, and what else is named."""
    scripts = f"{_hashes(html, 'script')} {script}".strip()
    return _policy(scripts, style=_hashes(html, "style"), img="'self' blob: data:")


def _policy(script: str, style: str, img: str) -> str:
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src {img};"
        " connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def _hashes(html: str, tag: str) -> str:
    """Allow the inline scripts or styles of a page by their SHA-256, and no others."""
    blocks = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return " ".join(f"'{integrity(block.encode())}'" for block in blocks)


def integrity(data: bytes, algorithm: str = "sha256") -> str:
    """Return a hash as browsers check it."""
    digest = hashlib.new(algorithm, data).digest()
    return f"{algorithm}-{base64.b64encode(digest).decode()}"
