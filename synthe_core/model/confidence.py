"""A head that says the probability that the model's most likely next token is correct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from synthe_core.layers.learner import Spec
from synthe_core.layers.projection import Linear, matrix_size
from synthe_core.ops.activations import silu
from synthe_core.ops.cross_entropy import TopPrediction

MIN_ERROR = 1e-6  # lower bound of the probability of an error, in the log-odds


class ConfidenceSpec(Spec):
    """A calibrated confidence features the model's logits."""

    hidden: int = Field(32, ge=1, description="channels of its hidden layer")
    weight: float = Field(0.1, gt=0, description="of its loss; it moves nothing but the head itself")


class ConfidenceHead(nn.Module):
    """p_t = σ(a logit π_t + w · silu(W [h_t; log(1 + s_t); log π_t] + b) + c): the probability that the likeliest token
    is the next one.

    h [B, T, D] is the normalised output of the last block, s the signals of `names` and π the probability that the
    model gives its likeliest token, [B, T] each. All are detached: the head does not train the model,
    except that its gradient counts in the norm that `train.clip` bounds.
    Trained by binary cross-entropy, a proper score, whose least value is at the true frequency. Initially
    p = π.
    """

    def __init__(self, spec: ConfidenceSpec, width: int, names: Sequence[str]) -> None:
        super().__init__()
        self.weight, self.names = spec.weight, tuple(names)
        self.inner = Linear(width + len(self.names) + 1, spec.hidden)
        self.out = Linear(spec.hidden, 1)
        self.scale = nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor, signals: Mapping[str, Tensor], max_logprob: Tensor) -> Tensor:
        """The log-odds [B, T] of a correct prediction; `max_logprob` is log π."""
        extra = [signals[name].detach().clamp_min(0).log1p() for name in self.names]
        features = torch.stack([*extra, max_logprob.detach()], -1).to(hidden.dtype)
        correction = self.out(silu(self.inner(torch.cat([hidden.detach(), features], -1))))[..., 0]
        log_p = max_logprob.detach().clamp_max(-MIN_ERROR)
        return self.scale * (log_p - (-log_p.expm1()).log()) + correction

    def loss(self, hidden: Tensor, signals: Mapping[str, Tensor], prediction: TopPrediction, scored: Tensor) -> Tensor:
        """The mean binary cross-entropy over the tokens that are `scored` (bool [B, T]), times the weight."""
        logit = self(hidden, signals, prediction.max_logprob)
        losses = F.binary_cross_entropy_with_logits(logit, prediction.correct.to(logit.dtype), reduction="none")
        return self.weight * torch.where(scored, losses, 0.0).sum() / scored.sum().clamp_min(1)

    def flops(self) -> float:
        """Floating-point operations per token of its matrices."""
        return 2.0 * (matrix_size(self.inner) + matrix_size(self.out))
