"""The sampling that a model's publisher recommends in generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from synthe_core.errors import InputError
from synthe_core.inference.sampling_params import SamplingParams

KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class GenerationDefaults:
    """What applies where a request says nothing: sampling parameters by name, and the most tokens of an answer."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: object) -> GenerationDefaults:
        """From the content of a generation_config.json. `do_sample: false` is
        greedy. Raises
        InputError that names the key with an invalid value."""
        chosen = {key: values[key] for key in KEYS if values.get(key) is not None}
        if chosen.get("top_k") == -1:
            chosen["top_k"] = 0
        if values.get("do_sample") is False:
            chosen["temperature"] = 0.0
        count = values.get("max_new_tokens")
        if count is not None and (type(count) is not int or count < 1):
            raise _invalid(source, "max_new_tokens", count)
        try:
            SamplingParams.model_validate(chosen)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise _invalid(source, str(fault["loc"][0]), fault["input"]) from None
        return cls(chosen, count)

    def apply(self, given: Mapping[str, Any]) -> SamplingParams:
        """The parameters of a request that gives these ones itself. Raises pydantic's ValidationError."""
        return SamplingParams.model_validate({**self.sampling, **given})

    def limits(self, name: str) -> dict[str, int]:
        """The most tokens of an answer under a name of the caller's; empty without a limit."""
        return {} if self.max_tokens is None else {name: self.max_tokens}

    def __str__(self) -> str:
        values = {**self.sampling, **self.limits("max_tokens")}
        return ", ".join(f"{key} {value:g}" for key, value in values.items())


def _invalid(source: object, key: str, value: object) -> InputError:
    return InputError(
        f"{source}: generation_config.json has {key} {str(value)[:50]!r}", "--generation-config none leaves it out"
    )
