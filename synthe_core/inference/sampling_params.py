"""How the next token is chosen from logits."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from synthe_core.layers.learner import Spec


class SamplingParams(Spec):
    """Temperature 0 is greedy. The filters apply in the order of the fields; 0, 1 and None switch each off."""

    repetition_penalty: float = Field(
        1.0, ge=0.01, le=100, description="divides the logits of tokens already seen (Keskar 2019)"
    )
    frequency_penalty: float = Field(
        0.0, description="is subtracted from a token's logit each time that it was generated"
    )
    presence_penalty: float = Field(0.0, description="is subtracted from the logit of a token that was generated")
    logit_bias: Mapping[int, float] = Field({}, description="token -> what is added to its logit; -100 forbids it")
    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(0, ge=0, description="keep the k likeliest")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the likeliest that together reach p (Holtzman 2019)")
    min_p: float = Field(0.0, ge=0, lt=1, description="keep those at least this fraction as likely as the likeliest")

    @property
    def uses_token_counts(self) -> bool:
        """Whether it matters how often a token was generated."""
        return self.frequency_penalty != 0.0 or self.presence_penalty != 0.0

    @property
    def keeps_logits(self) -> bool:
        """Whether no penalty and no bias changes the logits."""
        return self.repetition_penalty == 1.0 and not self.uses_token_counts and not self.logit_bias
