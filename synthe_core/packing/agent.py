"""agent.yaml: the specialists of a file, each with a name, capabilities and a system prompt."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from synthe_core.errors import InputError
from synthe_core.packing.adapters import find_adapter
from synthe_core.packing.manifest import Specialist
from synthe_core.storage.yaml_reader import decode_untrusted_yaml, parse_yaml


class Agent(BaseModel):
    """The content of agent.yaml: specialists with distinct names."""

    model_config = ConfigDict(extra="forbid")

    specialists: list[Specialist]

    @field_validator("specialists")
    @classmethod
    def _names_differ(cls, specialists: list[Specialist]) -> list[Specialist]:
        names = [each.name for each in specialists]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two specialists are named '{name}'")
        return specialists

    @property
    def capabilities(self) -> list[str]:
        """All capabilities, in the order of first mention."""
        return list(dict.fromkeys(word for each in self.specialists for word in each.capabilities))


def read_agent(content: bytes, name: str, adapters: Collection[str]) -> Agent:
    """The specialists in `content`. InputError with line and column if it is malformed."""
    source = parse_yaml(decode_untrusted_yaml(content, name), name)
    try:
        agent = Agent.model_validate(source.values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        message = str(fault.get("ctx", {}).get("error", fault["msg"]))
        path = ".".join(map(str, fault["loc"]))
        raise InputError(
            f"{source.locate(fault['loc'])}: {path}: {message[:1].lower()}{message[1:]}",
            "a specialist has name, capabilities, system_prompt, priority and adapter",
        ) from None
    for each in agent.specialists:
        if each.adapter is not None:
            find_adapter(each.adapter, dict.fromkeys(adapters))
    return agent
