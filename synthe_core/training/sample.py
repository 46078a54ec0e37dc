"""A piece of text in the middle of training: what the numbers sound like."""

from __future__ import annotations

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.inference.generation import write
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.model.language_model import LanguageModel
from synthe_core.training.settings import Settings

SAMPLING = SamplingParams(temperature=0.8, top_p=0.95)


def write_sample(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str, tokens: int, settings: Settings, seed: int
) -> str:
    """`prompt` and up to `tokens` tokens that the model puts after it; an empty prompt begins a document."""
    with settings.context.activate():
        return prompt + "".join(p.text for p in write(model, tokenizer, [prompt], tokens, sampling=SAMPLING, seed=seed))
