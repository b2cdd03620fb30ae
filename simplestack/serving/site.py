"""What the service shows of itself: the page at /, its API at /docs, its model and its numbers."""

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from simplestack.serving import openapi, telemetry

WEB = Path(__file__).parent / "web"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def site(about: Callable[[], dict[str, Any]], *, token: bool) -> Starlette:
    """Build all that is not a prediction; /model.json answers what `about` gives.

    With a `token`, /docs says that one is needed.
    """
    index = (WEB / "index.html").read_text()
    docs = (WEB / "docs.html").read_text()
    strict = _policy(
        script=_hashes(index, "script"), style=_hashes(index, "style"), img="'self' blob: data:"
    )
    # Swagger UI, which comes with BentoML, styles its elements inline.
    swagger = _policy(script="'self'", style="'self' 'unsafe-inline'", img="'self' data:")

    def page(html: str, policy: str) -> Callable[[Request], Response]:
        headers = {**HEADERS, "Content-Security-Policy": policy}
        return lambda _: HTMLResponse(html, headers=headers)

    def model(_: Request) -> Response:
        return JSONResponse(about(), headers=HEADERS)

    def document(_: Request) -> Response:
        return JSONResponse(openapi.document(about()["classes"], token=token), headers=HEADERS)

    return Starlette(
        routes=[
            Route("/", page(index, strict)),
            Route("/docs", page(docs, swagger)),
            Route("/docs.json", document),
            Route("/model.json", model),
            Route("/metrics", telemetry.metrics),
        ]
    )


def _policy(script: str, style: str, img: str) -> str:
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src {img};"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(html: str, tag: str) -> str:
    """Allow the inline scripts or styles of a page by their SHA-256, and no others."""
    blocks = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(b.encode()).digest()).decode() for b in blocks)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
