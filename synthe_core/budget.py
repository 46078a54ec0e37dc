"""How long a run lasts: in tokens, steps or wall-clock time."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

Unit = Literal["tokens", "steps", "seconds"]

_PATTERN = re.compile(
    r"^\s*([0-9][0-9_]*(?:\.[0-9]*)?)\s*([kKMGBT]?)\s*(tokens?|steps?|s|sec|m|min|h|hours?|d|days?)\s*$"
)
_SCALE = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Budget(NamedTuple):
    """`amount` of `unit`; written as 20Mtokens, 500steps, 90s, 3m, 2h or 1d."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: Any) -> Budget:
        """Reads the written form; raises ValueError with an example otherwise."""
        if isinstance(text, Budget):
            return text
        found = _PATTERN.match(str(text))
        if not found or float(found[1].replace("_", "")) <= 0:
            raise ValueError(f"'{text}' is no budget; write tokens, steps or time, such as 20Mtokens, 500steps or 3m")
        amount = float(found[1].replace("_", "")) * _SCALE[found[2]]
        if found[3].startswith("token"):
            return cls(amount, "tokens")
        if found[3].startswith("step"):
            return cls(amount, "steps")
        if found[2]:
            raise ValueError(f"'{text}' is no budget; a time is a plain number and its unit, such as 90s, 3m or 2h")
        return cls(amount * _SECONDS[found[3][0]], "seconds")

    def __str__(self) -> str:
        if self.unit == "seconds":
            return f"{self.amount:g}s"
        return f"{self.amount:.15g}{self.unit}"

    def fraction(self, *, tokens: float, steps: float, seconds: float) -> float:
        """How much of the budget is spent, 0 to 1 and beyond."""
        return {"tokens": tokens, "steps": steps, "seconds": seconds}[self.unit] / self.amount

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
            "examples": ["20Mtokens", "500steps", "3m"],
        }
