"""Text generated during training."""

from __future__ import annotations

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.offline import generate
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.model.language_model import LanguageModel
from synthe_core.training.settings import Settings

SAMPLING = SamplingParams(temperature=0.8, top_p=0.95)


def write_sample(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str, tokens: int, settings: Settings, seed: int
) -> str:
    """`prompt` and up to `tokens` tokens after it; an empty prompt starts a document."""
    loaded = LoadedModel("model", model, tokenizer, context=settings.context)
    return prompt + "".join(delta.text for delta in generate(loaded, [prompt], tokens, sampling=SAMPLING, seed=seed))
