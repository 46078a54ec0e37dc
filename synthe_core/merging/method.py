"""A merge method, described by its function's signature: how many models, whether a base, which parameters.

A method is one pure function on tensors. Its positional parameters are `models` (a sequence of tensors, read one at a
time from disk: iterate once) and, if it needs one, `base`. Keyword-only parameters are the user's options; their
annotations have the range and the help text. A parameter `generator` receives a seeded random generator.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from torch import Tensor

from synthe_core.errors import InputError, unknown
from synthe_core.merging.methods import METHODS


class Count(NamedTuple):
    """How many models beside the base a method takes."""

    least: int
    most: int | None = None

    def __str__(self) -> str:
        if self.least == self.most:
            return f"{self.least} model{'s' if self.least > 1 else ''}"
        return f"{self.least} or more models"


Models = Annotated[Sequence[Tensor], Count(1)]
Several = Annotated[Sequence[Tensor], Count(2)]
Two = Annotated[Sequence[Tensor], Count(2, 2)]
One = Annotated[Sequence[Tensor], Count(1, 1)]

Number = Annotated[float, Field(ge=-1e30, le=1e30)]  # float32 can hold it
Share = Annotated[float, Field(gt=0, le=1)]

Weight = Annotated[Sequence[Number], Field(description="weight of each model")]
Density = Annotated[Sequence[Share], Field(description="share of each difference that is retained, in (0, 1]")]
Lambda = Annotated[Number, Field(description="scale of the merged difference")]
Normalize = Annotated[bool, Field(description="divide by the sum of the weights")]
Rescale = Annotated[bool, Field(description="scale up to compensate for dropped entries")]
RescaleBy = Annotated[
    Literal["chance", "l1"],
    Field(description="divide by the probability of retention, as published; or preserve the L1 norm, as in mergekit"),
]


class Parameter:
    """A keyword parameter of a method. `each`: every model has its own value."""

    def __init__(self, name: str, annotation: Any, default: Any) -> None:
        self.keyword, self.name = name, name.rstrip("_")
        inner, *notes = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
        self.each = get_origin(inner) is Sequence
        self.description = next((n.description for n in notes if isinstance(n, FieldInfo) and n.description), "")
        self.required = default is inspect.Parameter.empty
        self.default = default[0] if self.each and not self.required else default
        plain = get_args(inner)[0] if self.each else annotation
        self.type = _bare(plain)
        self._adapter: TypeAdapter[Any] = TypeAdapter(plain)

    def check(self, value: Any, place: str = "") -> Any:
        """`value` converted to the parameter's type. InputError with the range if it is outside."""
        if isinstance(value, bool) and self.type is not bool:
            reason = "Input should be a number"
        else:
            try:
                return self._adapter.validate_python(value)
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
        raise InputError(
            f"{place}{self.name} {value!r}: {reason[:1].lower()}{reason[1:]}",
            f"{self.name}: {self.description}" if self.description else None,
        )


class Method:
    """A method of the table; calling it merges one tensor."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.function: Callable[..., Tensor] = METHODS[name]
        self._signature = inspect.signature(self.function)
        self._hints = get_type_hints(self.function, include_extras=True)

    @cached_property
    def summary(self) -> str:
        """The first line of its description."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @cached_property
    def paper(self) -> str:
        """The publication: what follows `Source:` in its description."""
        text = " ".join((inspect.getdoc(self.function) or "").split())
        return text.partition("Source: ")[2].rstrip(".")

    @cached_property
    def count(self) -> Count:
        return next(note for note in get_args(self._hints["models"]) if isinstance(note, Count))

    @property
    def takes_base(self) -> bool:
        return "base" in self._signature.parameters

    @property
    def needs_base(self) -> bool:
        return self.takes_base and self._signature.parameters["base"].default is inspect.Parameter.empty

    @property
    def random(self) -> bool:
        return "generator" in self._signature.parameters

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters by their names in YAML (`lambda`; in Python `lambda_`)."""
        parameters = [
            Parameter(each.name, self._hints[each.name], each.default)
            for each in self._signature.parameters.values()
            if each.kind is inspect.Parameter.KEYWORD_ONLY and each.name != "generator"
        ]
        return {each.name: each for each in parameters}

    def parameter(self, name: str) -> Parameter:
        if name not in self.parameters:
            error = unknown(f"parameter of {self.name}", name, self.parameters)
            having = self.others_with(name)
            raise InputError(error.message, f"methods that have it: {', '.join(having)}") if having else error
        return self.parameters[name]

    def others_with(self, name: str) -> list[str]:
        """The other methods that have a parameter of this name."""
        return [each for each in METHODS if each != self.name and name in Method(each).parameters]

    def check_count(self, models: int) -> None:
        """InputError where a method is given too few models, or too many."""
        if models < self.count.least or (self.count.most is not None and models > self.count.most):
            base = " beside the base" if self.needs_base else ""
            hint = "the first model named is the base, unless --base names one" if self.needs_base else None
            raise InputError(f"{self.name} merges {self.count}{base}, and got {models}", hint)

    def __call__(self, models: Sequence[Tensor], base: Tensor | None, values: Mapping[str, Any], **more: Any) -> Tensor:
        """Merges tensors with the parameters `values`, by their YAML names."""
        keywords = {self.parameters[name].keyword: value for name, value in values.items()} | more
        return self.function(models, base, **keywords) if self.takes_base else self.function(models, **keywords)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
