"""Commands whose options are the fields of a dataclass, so that each option is declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

Options = TypeVar("Options")


def takes(options: type[Options], *names: str) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Makes a Typer command of a function of one argument, an instance of the dataclass `options`.

    names: the fields that are options of this command; all `Annotated` ones by default. The others keep their defaults.
    """
    hints = get_type_hints(options, include_extras=True)
    chosen = [
        field
        for field in fields(options)  # type: ignore[arg-type]
        if get_origin(hints[field.name]) is Annotated and (not names or field.name in names)
    ]
    if unknown := set(names) - {field.name for field in chosen}:
        raise TypeError(f"{options.__name__} has no option {', '.join(sorted(unknown))}")

    def decorate(function: Callable[[Options], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            function(options(**values))

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if field.default is MISSING else field.default,
                    annotation=hints[field.name],
                )
                for field in chosen
            ]
        )
        command.__annotations__ = {field.name: hints[field.name] for field in chosen}
        return command

    return decorate
