"""Parameters, state and FLOPs of a recipe's model, counted on a model without storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from synthe_core.data.tokenizers import open_tokenizer
from synthe_core.model.classifier import Classifier, Model
from synthe_core.model.published_spec import PublishedSpec, text_config
from synthe_core.recipe.schema import Recipe


@dataclass(frozen=True)
class Account:
    """The counts of a model.

    by_learner:        sums to `parameters`; a matrix shared by embedding and head counts once, as the embedding.
    active_parameters: those that one token uses; fewer than `parameters` in a mixture of experts.
    state_bytes:       bytes of one sequence's state, by its number of tokens.
    flops:             floating-point operations per token of a forward pass over `sequence` tokens; training takes
                       three times as many, one forward and two for the backward pass.
    """

    parameters: int
    active_parameters: int
    by_learner: dict[str, int]
    state_bytes: dict[int, int]
    flops: float
    vocabulary: int
    sequence: int

    def as_dict(self) -> dict[str, Any]:
        active = {} if self.active_parameters == self.parameters else {"active_parameters": self.active_parameters}
        return {
            "parameters": {"total": self.parameters, **self.by_learner},
            **active,
            "state_bytes": {str(tokens): size for tokens, size in self.state_bytes.items()},
            "flops_per_token": {"forward": self.flops, "training": 3 * self.flops},
            "vocabulary": self.vocabulary,
            "sequence": self.sequence,
        }


def account(recipe: Recipe) -> Account:
    """Counts a recipe's model. InputError if its sizes do not match."""
    vocabulary = vocabulary_of(recipe)
    model = recipe.meta_model(vocabulary)
    time = recipe.data.sequence
    lengths = sorted({1, time, 8 * time})
    return Account(
        parameters=model.parameter_count(),
        active_parameters=model.active_parameter_count(),
        by_learner=_by_learner(model),
        state_bytes={tokens: model.state_bytes(tokens) for tokens in lengths},
        flops=model.flops(time),
        vocabulary=vocabulary,
        sequence=time,
    )


def vocabulary_of(recipe: Recipe) -> int:
    """The size of the tokenizer's vocabulary; for one that is not trained yet, the requested size."""
    if isinstance(recipe.model, PublishedSpec):
        return int(text_config(recipe.model.config)["vocab_size"])
    tokenizer = recipe.data.tokenizer
    return tokenizer.vocab or open_tokenizer(tokenizer.type).vocab_size


def _by_learner(model: Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    if isinstance(model.spec, PublishedSpec):  # its blocks are made of modules of a library
        return {module: sum(p.numel() for p in each.parameters()) for module, each in model.named_children()}
    norms = 0
    blocks: Any = model.blocks  # torch types what a ModuleList holds as Module
    for block in blocks:
        for learner in block.learners:
            name = learner.config.type
            counts[name] = counts.get(name, 0) + sum(p.numel() for p in learner.parameters())
        norms += sum(p.numel() for part in (block.norms, block.post_norms) for p in part.parameters())
    counts["embedding"] = model.embedding.weight.numel()
    if model.positions is not None:
        counts["positions"] = model.positions.weight.numel()
    if isinstance(model, Classifier):
        for name, part in (("patch", model.patch), ("pool", model.pool)):
            if part is not None and (size := sum(p.numel() for p in part.parameters())):
                counts[name] = size
    elif model.confidence is not None:
        counts["confidence"] = sum(p.numel() for p in model.confidence.parameters())
    if model.router is not None:
        counts["router"] = sum(p.numel() for p in model.router.parameters())
    if head := sum(p.numel() for p in model.head.parameters() if p is not model.embedding.weight):
        counts["head"] = head
    counts["norms"] = norms + sum(p.numel() for p in model.norm.parameters())
    return counts
