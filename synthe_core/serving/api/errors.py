"""Every way to say no, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse

from synthe_core.errors import InputError, SyntheError, closest
from synthe_core.inference.request import Busy, NotFound

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
QUOTED = 200  # characters of what was asked that an answer repeats


class Refusal(Exception):
    """An answer that is an error; raised anywhere under a handler."""

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


def busy(message: str, retry: float) -> Refusal:
    """429, with the seconds after which to come again."""
    seconds = str(max(1, math.ceil(retry)))
    return Refusal(429, message, code="rate_limit_exceeded", headers={"Retry-After": seconds})


def refusal(error: SyntheError) -> Refusal:
    """What an error of ours is over HTTP."""
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, Busy):
        return busy(message, error.retry)
    if isinstance(error, NotFound):
        return Refusal(404, message, code="not_found")
    return Refusal(400 if isinstance(error, InputError) else 500, message)


def invalid(error: ValidationError, body: type[BaseModel]) -> Refusal:
    """400 for a body that is not as its model says: the first fault, and where it is."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    fault = faults[0]
    where = [str(part) for part in fault["loc"]]
    text = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":  # of fields together; it names them itself
        return Refusal(400, text, param=text.partition(":")[0])
    if not where:
        return Refusal(400, f"the body is not as it must be: {text[:QUOTED]}")
    name = where[0][:QUOTED]
    if fault["type"] == "extra_forbidden" and len(where) == 1:
        near = closest(name, body.model_fields)
        return Refusal(400, f"unknown field '{name}'" + (f" (did you mean '{near}'?)" if near else ""), param=name)
    field = body.model_fields.get(name)
    several = sum(each["loc"][:1] == fault["loc"][:1] for each in faults) > 1
    if several and field is not None and field.description:  # it may be one of several things, and is none of them
        return Refusal(400, f"{name}: expected {field.description}", param=name)
    param = ".".join(where)[:QUOTED]
    return Refusal(400, f"{param}: {text[:1].lower()}{text[1:]}"[: 2 * QUOTED], param=param)
