"""The API as an OpenAPI document: what /docs shows, and what clients are generated from."""

from typing import Any

TYPES = ("image/jpeg", "image/png", "image/webp", "image/avif", "image/gif", "image/bmp",
         "image/tiff")  # fmt: skip
ERRORS = {
    400: "No image, a damaged one, or `explain` is neither 0 nor 1.",
    401: "The token is missing or wrong.",
    405: "Another method than POST.",
    413: "The body is too large, or the picture has too many pixels.",
    415: "A file of a kind that isn't read: PDF, SVG, HEIC, video …",
    503: "Too many requests at once.",
    504: "There was no answer in time.",
}
IMAGE = {"type": "string", "format": "binary"}
PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}


def document(classes: list[str], *, token: bool) -> dict[str, Any]:
    """Describe the API for some classes; with a `token`, where one is asked for."""
    security: dict[str, Any] = {"security": [{"token": []}]} if token else {}
    schemes = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}} if token else {}
    return {
        "openapi": "3.0.3",
        "info": {"title": f"{' or '.join(classes).capitalize()}?", "version": "1"},
        "paths": {
            "/predict": {"post": {**_predict(token), **security}},
            "/model.json": {"get": _get("What is known of the model.", "application/json")},
            "/livez": {"get": _get("It runs.", "text/plain")},
            "/readyz": {"get": _get("It is ready: the model has answered once.", "text/plain")},
            "/metrics": {"get": _get("Numbers for Prometheus.", "text/plain")},
        },
        "components": {
            "schemas": {"Prediction": _prediction(classes), "Error": _object(error=_STRING)},
            **schemes,
        },
    }


def _predict(token: bool) -> dict[str, Any]:
    return {
        "operationId": "predict",
        "summary": "Name the label of an image, and the probability of every label.",
        "parameters": [
            {
                "name": "explain",
                "in": "query",
                "description": "1 adds the class activation map of the label.",
                "schema": {"type": "string", "enum": ["0", "1"], "default": "0"},
            }
        ],
        "requestBody": {
            "required": True,
            "description": "The image itself. (Or the first file of a form, as curl -F sends it.)",
            "content": {name: {"schema": IMAGE} for name in TYPES},
        },
        "responses": {
            "200": _response("The prediction.", _ref("Prediction")),
            **{
                str(status): _response(text, _ref("Error"))
                for status, text in ERRORS.items()
                if status != 401 or token  # noqa: PLR2004
            },
        },
    }


def _prediction(classes: list[str]) -> dict[str, Any]:
    row = {"type": "array", "items": {"type": "number"}, "minItems": 7, "maxItems": 7}
    properties = {
        "label": {"type": "string", "enum": classes},
        "confidence": PROBABILITY,
        "probabilities": _object(**dict.fromkeys(classes, PROBABILITY)),
    }
    schema = _object(**properties)
    schema["properties"]["map"] = {
        "description": "Class activation map over the middle square; its mean is the logit.",
        **{"type": "array", "items": row, "minItems": 7, "maxItems": 7},
    }
    return schema


_STRING = {"type": "string"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _get(summary: str, content_type: str) -> dict[str, Any]:
    schema = {"type": "object"} if content_type == "application/json" else _STRING
    response = {"description": summary, "content": {content_type: {"schema": schema}}}
    return {"summary": summary, "responses": {"200": response}}
