"""The HTTP API, from the OpenAPI document that the server publishes."""

from __future__ import annotations

import json
from typing import Any

from docs.generate.markdown import cell, escaped, table
from docs.generate.schema import keys, reference_name
from synthe_core.serving.api.endpoints import document


def document_text() -> str:
    """The OpenAPI document as the server gives it at /openapi.json."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def page() -> str:
    """http-api.md: the paths, then every body and answer."""
    described = document()
    schemas = described["components"]["schemas"]
    links = {name: f"#{name.lower()}" for name in schemas}
    rows = [
        [f"`{method.upper()} {path}`", cell(operation["summary"]), _body(operation, links), _reply(operation, links)]
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    ]
    parts = [
        "# HTTP API\n",
        "What `synthe serve` answers, from its OpenAPI document ([openapi.json](openapi.json); a running server gives "
        "it at `/openapi.json`). A request with an unknown field is refused with 400. Errors have the body "
        f"[Error]({links['Error']}).\n",
        "## Paths\n",
        table(["path", "what it does", "body", "answer"], rows),
    ]
    for name, schema in schemas.items():
        about = f"{escaped(schema['description'])}\n\n" if "description" in schema else ""
        parts.append(f"## {name}\n\n{about}{keys(schema, links)}")
    return "\n".join(parts)


def _body(operation: dict[str, Any], links: dict[str, str]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    return _linked(content.get("application/json", {}).get("schema", {}), links)


def _reply(operation: dict[str, Any], links: dict[str, str]) -> str:
    content = operation["responses"]["200"].get("content", {})
    kinds = [_linked(each.get("schema", {}), links) or f"`{kind}`" for kind, each in content.items()]
    return ", ".join(kinds)


def _linked(schema: dict[str, Any], links: dict[str, str]) -> str:
    name = reference_name(schema)
    return f"[{name}]({links[name]})" if name in links else ""
