"""The config.json of a checkpoint as a configuration of transformers. Without transformers' model classes and without
ours: every process that uses transformers imports this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from synthe_core.storage.path_format import MODEL_TYPE


class SyntheConfig(PreTrainedConfig):
    """The sizes of a model of ours.

    model: the recipe's `model`, from which the layers are built; `hidden_size`, `num_hidden_layers`,
    `tie_word_embeddings` and `final_logit_softcapping` repeat its values under the names that transformers knows.
    without: the parts of it that the stage of training leaves out. sequence: tokens of a training sequence. context:
    the longest text that a published model was trained for. max_position_embeddings: that or `sequence` for a model
    whose state grows with the text, the number of learned positions for one that has them, and None for one without
    limit.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (a list for transformers)

    vocab_size: int = 257
    hidden_size: int = 0
    num_hidden_layers: int = 0
    tie_word_embeddings: bool = True
    model: dict[str, Any] | None = None
    without: list[str] | None = None
    sequence: int | None = None
    context: int | None = None
    max_position_embeddings: int | None = None
    use_cache: bool = True
    final_logit_softcapping: float | None = None

    auto_map: ClassVar[dict[str, str]] = {}
    """Classes of code that came with a model: there is none. TRL looks for them."""
    prepare: ClassVar[Callable[[], None]] = staticmethod(lambda: None)
    """Called before a configuration is made: `registration.register` adds the model's class then."""

    def __post_init__(self, **kwargs: Any) -> None:
        type(self).prepare()
        if isinstance(self.model, dict):
            self.hidden_size = self.model.get("width", self.hidden_size)
            self.num_hidden_layers = self.model.get("blocks", self.num_hidden_layers)
            self.tie_word_embeddings = self.model.get("tie", True)
            self.final_logit_softcapping = self.model.get("logit_cap")
        super().__post_init__(**kwargs)
