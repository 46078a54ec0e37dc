"""A piece of text in the middle of training: what the numbers sound like."""

from __future__ import annotations

import torch

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.model.generate import Generation
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.sampling import Sampling
from synthe_core.training.settings import Settings

SAMPLING = Sampling(temperature=0.8, top_p=0.95)


@torch.no_grad()
def write_sample(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str, tokens: int, settings: Settings, seed: int
) -> str:
    """`prompt` and up to `tokens` tokens that the model puts after it; an empty prompt begins a document."""
    start = tokenizer.encode(prompt) or [tokenizer.end]
    written: list[int] = []
    with settings.in_force():
        generation = Generation(model, [start], sampling=SAMPLING, seed=seed, end=tokenizer.end)
        while len(written) < tokens and bool(generation.live[0]):
            written.append(int(generation.step()[0]))
    return prompt + tokenizer.decode(written)
