"""The length of a run in tokens, steps, epochs or wall-clock time."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from synthe_core.units import COUNT_SUFFIXES, NUMBER, parse_count

Unit = Literal["tokens", "steps", "epochs", "seconds"]

_PATTERN = re.compile(
    rf"^\s*({NUMBER})\s*([{''.join(COUNT_SUFFIXES)}]?)\s*(tokens?|steps?|epochs?|s|sec|m|min|h|hours?|d|days?)\s*$"
)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Budget(NamedTuple):
    """An amount of tokens, steps, epochs or seconds, written as 20Mtokens, 500steps, 3epochs, 90s, 3m, 2h or 1d.

    An epoch is as many training sequences, passages or rows as the data have.
    """

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: Any) -> Budget:
        """Parses the written form. ValueError with an example otherwise."""
        if isinstance(text, Budget):
            return text
        match = _PATTERN.match(str(text))
        amount = parse_count(match[1] + match[2]) if match else 0
        if not match or amount <= 0:
            examples = "20Mtokens, 500steps, 3epochs or 3m"
            raise ValueError(f"'{text}' is not a budget in tokens, steps, epochs or time, such as {examples}")
        suffix, unit = match[2], match[3]
        if unit.startswith("token"):
            return cls(amount, "tokens")
        if unit.startswith("step"):
            return cls(amount, "steps")
        if unit.startswith("epoch"):
            return cls(amount, "epochs")
        if suffix:
            raise ValueError(f"'{text}' is not a budget: a time is a plain number and its unit, such as 90s, 3m or 2h")
        return cls(amount * _SECONDS[unit[0]], "seconds")

    def __str__(self) -> str:
        if self.unit == "seconds":
            return f"{self.amount:g}s"
        return f"{self.amount:.15g}{self.unit}"

    def fraction(self, *, tokens: float, steps: float, seconds: float, epochs: float = 0.0) -> float:
        """The share of the budget that is spent; above 1 beyond its end."""
        return {"tokens": tokens, "steps": steps, "epochs": epochs, "seconds": seconds}[self.unit] / self.amount

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {
            "type": "string",
            "pattern": _PATTERN.pattern.replace("\\s*", ""),
            "examples": ["20Mtokens", "500steps", "3epochs", "3m"],
        }
