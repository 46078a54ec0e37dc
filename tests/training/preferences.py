"""Small models, batches of pairs and ratings, and what an objective is set up with."""

from __future__ import annotations

from typing import Any

import torch

from synthe_core.data.conversations.example_batches import GOOD
from synthe_core.data.stream import Batch
from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.recipe.objective_table import OBJECTIVES
from synthe_core.training.objectives.objective import Objective, ObjectiveSetup

VOCAB, SEQUENCE = 40, 24
PAIRS = ((4, 3, 9), (7, 12, 1), (1, 5, 6), (9, 2, 14), (3, 8, 8))
"""Tokens of a prompt, of its chosen answer and of its rejected one: odd and unequal lengths."""
BLOCKS: dict[str, list[dict[str, Any]]] = {
    "delta": [{"type": "delta", "heads": 2}, {"type": "conv"}],
    "attention": [{"type": "attention", "heads": 2}, {"type": "mlp"}],
    "slots": [{"type": "slots", "balance": 0.1, "noise": "none"}],
}


def model_of(kind: str = "attention", seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    spec = ModelSpec.model_validate({"width": 16, "blocks": 2, "block": BLOCKS[kind]})
    model = LanguageModel(spec, VOCAB).double()
    with torch.no_grad():
        for parameter in model.parameters():  # a head of zeros would make all answers equally likely
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def perturb(model: LanguageModel, seed: int = 7, scale: float = 0.05) -> None:
    """What training would do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def batch_of(texts: list[tuple[list[int], list[int]]], group: int, good: list[bool] | None = None) -> Batch:
    """Rows of (prompt, answer) in tokens."""
    lengths = torch.tensor([len(prompt) + len(answer) - 1 for prompt, answer in texts])
    inputs = torch.zeros(len(texts), int(lengths.max()), dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORED)
    for row, (prompt, answer) in enumerate(texts):
        inputs[row, : lengths[row]] = torch.tensor([*prompt, *answer][:-1])
        targets[row, len(prompt) - 1 : lengths[row]] = torch.tensor(answer)
    return Batch(inputs, targets, lengths, group, {GOOD: torch.tensor(good or [True] * len(texts))})


def pair_texts(seed: int = 3) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for prompt, *answers in PAIRS:
        tokens = torch.randint(VOCAB, (prompt,), generator=generator).tolist()
        texts += [(tokens, torch.randint(VOCAB, (size,), generator=generator).tolist()) for size in answers]
    return texts


def pairs(seed: int = 3) -> Batch:
    return batch_of(pair_texts(seed), 2)


def ratings(seed: int = 3) -> Batch:
    """An answer to each of the prompts: the first of two pairs, the second of the others."""
    good = [True, False, True, False, False]
    texts = [pair_texts(seed)[2 * row + (not each)] for row, each in enumerate(good)]
    return batch_of(texts, 1, good)


def ready(name: str, model: LanguageModel, rows: int = 3, **keys: Any) -> Objective:
    """An objective whose reference is `model` as it is."""
    objective = OBJECTIVES[name](OBJECTIVES[name].Config(type=name, **keys))
    setup = ObjectiveSetup(model, ByteTokenizer(), ExecutionContext(torch.device("cpu")), rows, SEQUENCE)
    list(objective.begin(setup))
    return objective
