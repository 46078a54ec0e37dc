"""A published model in a recipe that another library runs: its configuration takes the place of learners."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from synthe_core.model.spec import ModelSpec
from synthe_core.registry import Table

LIBRARIES = Table(
    "library of models",
    "synthe.model_libraries",
    {"transformers": "synthe_core.interop.huggingface.published_model:build"},
)
"""What builds the model of a `PublishedSpec`: `build(spec, recompute)`. Each has the interface of a LanguageModel."""
SIZES = {
    "width": ("hidden_size", "n_embd", "d_model"),
    "blocks": ("num_hidden_layers", "n_layer", "num_blocks"),
    "positions": ("max_position_embeddings", "n_positions", "context_length"),
}


class PublishedSpec(ModelSpec):
    """The model of a config.json of transformers. The other keys follow from it."""

    config: dict[str, Any] = Field(..., description="config.json of transformers")
    width: int = Field(1, ge=1, description="hidden_size")
    blocks: int = Field(1, ge=1, le=1000, description="how many layers there are")
    block: list[list[Any]] = Field([[]], max_length=1, description="always empty")
    embed_norm: bool = False
    positions: int | None = Field(None, ge=1, description="the most tokens of a text")

    @model_validator(mode="before")
    @classmethod
    def _sizes_are_those_of_the_config(cls, values: Any) -> Any:
        config = values.get("config") if isinstance(values, dict) else None
        if not isinstance(config, dict):
            return values
        text = text_config(config)
        sizes: dict[str, Any] = {"block": [[]], "tie": text.get("tie_word_embeddings") is True}
        for size, keys in SIZES.items():
            named = (text[key] for key in keys if type(text.get(key)) is int and text[key] > 0)
            if (number := next(named, None)) is not None:
                sizes[size] = number
        return {**values, **sizes}

    @property
    def architecture(self) -> str:
        """The class of transformers, such as FalconH1ForCausalLM."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else str(self.config.get("model_type"))


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config.json that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config
