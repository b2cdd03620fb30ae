"""All routes but the predictions: the page, and the descriptions of the API and the model."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from simplestack.serving import telemetry
from simplestack.serving.inference import Metadata
from simplestack.serving.responses import JsonLine, http_error

PREDICT, CLASSIFY = "/predict", "/classify"
DESCRIPTIONS = "/docs.json", "/openapi.json"
EXAMPLES = ("examples/1.jpg", "examples/2.jpg", "examples/3.jpg")  # photos, if the model has some
PATHS = {PREDICT, CLASSIFY, "/", "/docs", *DESCRIPTIONS, "/model.json"}
PATHS |= {f"/{name}" for name in EXAMPLES}
MAX_NAMES = 5  # of classes in the title
PROBES = {"/livez", "/readyz", "/healthz", "/metrics"}  # requested every few seconds
SWAGGER_UI = ("ui.css", "ui-bundle.js", "ui-standalone-preset.js", "initializer.js")  # of /docs
BENTOML_PATHS = {"/schema.json", *(f"/static_content/swagger-{name}" for name in SWAGGER_UI)}
HERE = Path(__file__).parent
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def known_paths_only(app: ASGIApp, *, metrics: bool) -> ASGIApp:
    """Answer unknown paths with 404 in JSON. BentoML uses plain text, and matches /predict%0a.

    Without `metrics`, /metrics is unknown, too.
    """
    closed = set() if metrics else {"/metrics"}
    known = (PATHS | PROBES | BENTOML_PATHS) - closed

    async def check_path(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "/")
        if path not in known:
            raise HTTPException(404, "There is nothing at this path.")
        await app(scope, receive, send)

    return check_path


def site(load_metadata: Callable[[], Metadata], *, token: bool) -> Starlette:
    """Build the app for all routes but the predictions.

    `load_metadata` returns the model's metadata; `token` says whether predictions require one.
    """
    index = (HERE / "web" / "index.html").read_text()
    docs = (HERE / "web" / "docs.html").read_text()
    # Swagger UI, which comes with BentoML, styles its elements inline.
    swagger = _policy(script="'self'", style="'self' 'unsafe-inline'", img="'self' data:")

    def page(html: str, policy: str) -> Callable[[Request], Response]:
        headers = {**HEADERS, "Content-Security-Policy": f"{policy}; frame-ancestors 'none'"}
        return lambda _: HTMLResponse(html, headers=headers)

    def model(_: Request) -> Response:
        return JsonLine(model_json(load_metadata()), headers=HEADERS)

    def example(request: Request) -> Response:
        photo = examples(load_metadata()).get(request.scope["path"].removeprefix("/"))
        if not photo:
            raise HTTPException(404, "This model has no example photos.")
        return Response(photo, media_type="image/jpeg", headers=HEADERS)

    def document(_: Request) -> Response:
        return JsonLine(openapi(load_metadata()["classes"], token=token), headers=HEADERS)

    app = Starlette(
        routes=[
            Route("/", page(index, policy_for(index))),
            Route("/docs", page(docs, swagger)),
            *(Route(path, document) for path in DESCRIPTIONS),
            Route("/model.json", model),
            Route("/metrics", telemetry.metrics),
            *(Route(f"/{name}", example) for name in EXAMPLES),
        ],
        exception_handlers={HTTPException: http_error},
    )
    app.router.redirect_slashes = False  # the redirect would contain the client's Host header
    return app


def openapi(classes: list[str], *, token: bool) -> dict[str, Any]:
    """Return the OpenAPI description of the API; with `token`, predictions require a token."""
    document: dict[str, Any] = json.loads((HERE / "openapi.json").read_text())
    document["info"]["title"] = title(classes)
    for name in ("Prediction", "Score"):
        document["components"]["schemas"][name]["properties"]["label"]["enum"] = classes
    if not token:
        del document["components"]["securitySchemes"]
        for path in (PREDICT, CLASSIFY):
            post = document["paths"][path]["post"]
            del post["security"], post["responses"]["401"]
    return document


def model_json(metadata: Metadata) -> dict[str, Any]:
    """Return the metadata and the title, with paths in place of the example photos."""
    paths = list(EXAMPLES[: len(metadata["examples"])])
    return {**metadata, "title": title(metadata["classes"]), "examples": paths}


def examples(metadata: Metadata) -> dict[str, bytes]:
    """Return the example photos, JPEGs, by their paths."""
    return dict(zip(EXAMPLES, map(base64.b64decode, metadata["examples"]), strict=False))


def title(classes: list[str]) -> str:
    """Return the page's question, such as "Ants or bees?"; it names up to MAX_NAMES classes."""
    few = f"{', '.join(classes[:-1])} or {classes[-1]}"
    named = few if len(classes) <= MAX_NAMES else f"{len(classes)} kinds of things"
    return f"{named[:1].upper()}{named[1:]}?"


def policy_for(html: str, script: str = "") -> str:
    """Return the page's Content-Security-Policy: its inline scripts and those of `script`."""
    scripts = f"{_hashes(html, 'script')} {script}".strip()
    return _policy(scripts, style=_hashes(html, "style"), img="'self' blob: data:")


def _policy(script: str, style: str, img: str) -> str:
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src {img};"
        " connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def _hashes(html: str, tag: str) -> str:
    """Return the SHA-256 of each inline script or style of a page, as the policy lists them."""
    blocks = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return " ".join(f"'{integrity(block.encode())}'" for block in blocks)


def integrity(data: bytes, algorithm: str = "sha256") -> str:
    """Return a hash as in the HTML attribute `integrity`: the algorithm, and base64."""
    digest = hashlib.new(algorithm, data).digest()
    return f"{algorithm}-{base64.b64encode(digest).decode()}"
