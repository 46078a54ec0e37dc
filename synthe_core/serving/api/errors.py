"""Error responses in OpenAI's format: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse

from synthe_core.errors import InputError, SyntheError
from synthe_core.inference.request import Busy, NotFound, QuotaExceeded
from synthe_core.serving.api.messages import PARTS_TAG, TEXT_TAG

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
NO_RETRY = {"X-Should-Retry": "false"}
"""The clients of OpenAI repeat a request that ends in 5xx unless a header says not to."""
QUOTED = 200  # characters of the request that an error repeats


PATH = re.compile(r"""(?<![^\s'"`(=:,\[])(?:/|[A-Za-z]:\\)(?:[^\s/\\'"`:]+[/\\])+([^\s/\\'"`:,)]*)""")
"""An absolute path of a file, in a message."""


class HttpError(Exception):
    """An error response; raised anywhere in a handler. reason: what the log says, without any text of the request; the
    message by default."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, " ".join(message.split()), param, code
        self.reason = self.message if reason is None else reason
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def busy(message: str, retry: float) -> HttpError:
    """429, with the seconds after which to retry."""
    seconds = str(max(1, math.ceil(retry)))
    return HttpError(429, message, code="rate_limit_exceeded", headers={"Retry-After": seconds})


def http_error(error: SyntheError) -> HttpError:
    """The HTTP error of an error of synthe. The log gets no hint, which may quote the request."""
    message = without_folders(f"{error.message} ({error.hint})" if error.hint else error.message)
    if isinstance(error, Busy):
        return busy(message, error.retry)
    if isinstance(error, QuotaExceeded):
        return HttpError(507, message, code="quota_exceeded", headers=NO_RETRY)
    if isinstance(error, NotFound):
        return HttpError(404, message, code="not_found", reason=error.message)
    status = 400 if isinstance(error, InputError) else 500
    return HttpError(status, message, code=getattr(error, "code", None), reason=getattr(error, "reason", error.message))


def without_folders(message: str) -> str:
    """The message with the names of files in place of their paths: a client need not know the server's folders."""
    return PATH.sub(r"\1", message)


def invalid(error: ValidationError, body: type[BaseModel]) -> HttpError:
    """400 for an invalid body: its first error, and the field."""
    faults = error.errors(include_url=False, include_input=False)
    fault = faults[0]
    where = _fields_of(fault["loc"])
    context, text = fault.get("ctx", {}), fault["msg"].removeprefix("Value error, ")
    if "name" in context and fault["type"] in ("unknown_field", "field_error"):
        return _field_error(fault["type"], where, context)
    if not where:
        return HttpError(400, f"the body is invalid: {TYPES.get(fault['type'], text)[:QUOTED]}")
    name = str(where[0])[:QUOTED]
    field = body.model_fields.get(name)
    if _matches_no_type(faults) and field is not None and field.description:
        return HttpError(400, f"{name}: expected {field.description}", param=name)
    if where[-1] == "[key]":
        text = TYPES.get(fault["type"], text).format(**context)
        where, text = where[:-2], f"the key '{str(where[-2])[:QUOTED]}' is invalid: it {text}"
        return HttpError(400, f"{spelled(where)}: {text}", param=name, reason=f"{name}: a key is invalid")
    words = TYPES.get(fault["type"])
    text = words.format(**context) if words else f"{text[:1].lower()}{text[1:]}"
    param = spelled(where)
    return HttpError(400, f"{param}: {text}"[: 2 * QUOTED], param=param, reason=f"{name}: {text}"[: 2 * QUOTED])


TYPES = {
    "string_type": "expected a text",
    "int_type": "expected an integer",
    "float_type": "expected a number (not as text)",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "dict_type": "expected an object",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
    "missing": "this field is required",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_pattern_mismatch": "must match {pattern}",
    "union_tag_invalid": "expected one of {expected_tags} as {discriminator}",
    "union_tag_not_found": "{discriminator} is required",
    "too_short": "must have at least {min_length}",
    "too_long": "must have at most {max_length}",
}
"""Errors of pydantic in the words of JSON."""


def _fields_of(place: Sequence[int | str]) -> list[int | str]:
    """The names of fields in the place of a fault, where pydantic also names the member of a union."""
    tagged = [part for part in place if part not in (TEXT_TAG, PARTS_TAG)]
    is_format = tagged[:1] == ["response_format"]  # whose members are tagged by their type
    return tagged[:1] + tagged[2:] if is_format else tagged


def _field_error(kind: str, where: Sequence[int | str], context: Mapping[str, Any]) -> HttpError:
    """Of a field that `Body` refuses by name."""
    name = str(context["name"])[:QUOTED]
    param = spelled([*where, name])
    if kind == "field_error":
        message = f"{param}: {context['message']}"
        return HttpError(400, message, param=param)
    hint = f" (did you mean '{context['near']}'?)" if context["near"] else ""
    inside = f"{spelled(where)}: " if where else ""
    return HttpError(400, f"{inside}unknown field '{name}'{hint}", param=param, reason=f"{inside}unknown field{hint}")


def _matches_no_type(faults: Sequence[Any]) -> bool:
    """Whether a value is of no type of a union: the second part of each fault's place is the name of a type."""
    first = faults[0]["loc"][0]
    return len(faults) > 1 and all(
        len(fault["loc"]) > 1 and fault["loc"][0] == first and isinstance(fault["loc"][1], str) for fault in faults
    )


def spelled(where: Sequence[int | str]) -> str:
    """("messages", 2, "content") -> "messages[2].content"."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return "".join(parts).removeprefix(".")[:QUOTED]
