"""Error responses in OpenAI's format: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse

from synthe_core.errors import InputError, SyntheError, closest
from synthe_core.inference.request import Busy, NotFound, QuotaExceeded

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
QUOTED = 200  # characters of the request that an error repeats


class HttpError(Exception):
    """An error response; raised anywhere in a handler."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, " ".join(message.split()), param, code
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
    """The HTTP error of an error of synthe."""
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, Busy):
        return busy(message, error.retry)
    if isinstance(error, QuotaExceeded):
        return HttpError(507, message, code="quota_exceeded")
    if isinstance(error, NotFound):
        return HttpError(404, message, code="not_found")
    return HttpError(400 if isinstance(error, InputError) else 500, message)


def invalid(error: ValidationError, body: type[BaseModel]) -> HttpError:
    """400 for an invalid body: its first error, and the field."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    fault = faults[0]
    where = [str(part) for part in fault["loc"]]
    text = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":  # of several fields; the message names them
        return HttpError(400, text[: 2 * QUOTED], param=text.partition(":")[0][:QUOTED])
    if not where:
        return HttpError(400, f"the body is invalid: {text[:QUOTED]}")
    name = where[0][:QUOTED]
    if fault["type"] == "extra_forbidden" and len(where) == 1:
        near = closest(name, body.model_fields)
        return HttpError(400, f"unknown field '{name}'" + (f" (did you mean '{near}'?)" if near else ""), param=name)
    field = body.model_fields.get(name)
    several = sum(each["loc"][:1] == fault["loc"][:1] for each in faults) > 1
    if several and field is not None and field.description:  # a union of types, none of which matches
        return HttpError(400, f"{name}: expected {field.description}", param=name)
    param = ".".join(where)[:QUOTED]
    return HttpError(400, f"{param}: {text[:1].lower()}{text[1:]}"[: 2 * QUOTED], param=param)
