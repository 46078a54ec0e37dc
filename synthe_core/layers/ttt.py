"""TTT-Linear and TTT-MLP: a memory that takes a step of gradient descent on every token, in mini-batches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from synthe_core.layers.titans import DeepMemory, DeepMemoryConfig


class TTTNetwork(DeepMemory):
    """W_t = W' - Σ_s θ_s ∇ ½ ‖f(W'; k_s) - v_s‖² over the tokens s of the mini-batch up to t, y_t = W_out (norm(f(W_t;
    q_t)) ⊙ silu(g_t)), head by head.

    W' are the weights before the mini-batch, `chunk` tokens at absolute positions. f(W; x) = x + γ ⊙ norm(net(W; x)) +
    β: net is a matrix with a bias where `layers` is 1 (TTT-Linear), W₂ silu(W₁ x) where it is 2 (TTT-MLP, there with
    GELU). θ = `rate` σ(.) / (chunk K) is learned, per token and head. It is `titans` without momentum and forgetting;
    projections, convolution and gate are described there. `test_time` reads W' instead, and projects the memory.

    Source: Sun et al. 2024, "Learning to (learn at test time): RNNs with expressive hidden states".
    """

    momentum = False
    forget = False

    class Config(DeepMemoryConfig):
        type: Literal["ttt"] = "ttt"
        layers: Literal[1, 2] = Field(1, description="of the network: 1 is TTT-Linear, 2 TTT-MLP")
        expand: int = Field(4, ge=1, description="hidden units of two layers, as a multiple of the head's size")
