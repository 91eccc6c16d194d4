"""The OpenAPI document: bodies are read by hand, so their schemas are added by hand."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_TEMPLATE = "#/components/schemas/{model}"

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"anyOf": [_TEXT, {"type": "null"}]}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
        }
    },
}
_FAILURE = {
    "description": "What is wrong",
    "content": {"application/json": {"schema": {"$ref": _TEMPLATE.format(model="Error")}}},
}


def describe_bodies(app: FastAPI) -> None:
    """Replace pydantic models in the ``openapi_extra`` of routes by references to schemas."""
    bodies: dict[str, type[BaseModel]] = {}
    for route in app.routes:
        extra = getattr(route, "openapi_extra", None) or {}
        for content in extra.get("requestBody", {}).get("content", {}).values():
            body = content["schema"]
            if isinstance(body, type) and issubclass(body, BaseModel):
                bodies[body.__name__] = body
                content["schema"] = {"$ref": _TEMPLATE.format(model=body.__name__)}

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, definitions = models_json_schema(
                [(body, "validation") for body in bodies.values()], ref_template=_TEMPLATE
            )
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            components.update(definitions["$defs"])
            components["Error"] = _ERROR
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
                    operation["responses"]["default"] = _FAILURE
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
