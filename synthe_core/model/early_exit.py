"""The loss of an early exit: the model learns to predict after its first blocks too."""

from __future__ import annotations

from pydantic import Field

from synthe_core.layers.learner import Spec


class EarlyExitLoss(Spec):
    """weight * (mean cross-entropy of head(norm(x_k))), x_k the stream after the first k = `blocks` blocks; added to
    the loss of the whole model (Elhoushi et al. 2024, LayerSkip, with a single exit and without layer dropout)."""

    blocks: int = Field(..., ge=1, description="blocks before the exit, fewer than the model has")
    weight: float = Field(0.3, gt=0, description="of its loss, beside that of the whole model")
