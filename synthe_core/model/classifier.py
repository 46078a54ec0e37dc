"""An encoder with a classification head: the whole text in, one class out."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass
from synthe_core.layers.multiscale_stem import build_stem
from synthe_core.layers.projection import Linear, matrix_size
from synthe_core.layers.trace import Emission, Trace, schema
from synthe_core.model.language_model import Backbone, LanguageModel, Loss, ModelState, auxiliary, measures
from synthe_core.model.published_spec import LIBRARIES, PublishedSpec
from synthe_core.model.spec import ModelSpec
from synthe_core.model.student_spec import NO_TEACHER, StudentSpec
from synthe_core.ops.cross_entropy import IGNORED


class Pool(nn.Module):
    """Σ_t softmax_t(q · h_t / √D) h_t over the real tokens, q learned: [B, T, D] -> [B, D]; "mean" is a fixed q = 0.

    The query is initially zero, so that pooling starts as the mean. A row without tokens gives zeros.
    """

    emits = schema({"attention": Emission("B T", "memory", "weight of each token in the text's vector")})

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width)) if kind == "attention" else None

    def forward(self, hidden: Tensor, ctx: Pass) -> Tensor:
        hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
        scores = hidden.new_zeros(hidden.shape[:2])
        if self.query is not None:
            scores = (hidden * self.query).sum(-1) / math.sqrt(hidden.shape[-1])
        if ctx.mask is not None:
            scores = scores.masked_fill(~ctx.mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        if ctx.mask is not None:
            weights = weights * ctx.mask
        ctx.path = "pool"
        ctx.emit("attention", weights)
        return (weights[..., None] * hidden).sum(1)


class Classifier(Backbone):
    """Logits of `spec.head.classes` classes for each text: embedding -> stem -> blocks -> norm -> pooling -> head.

    The stem (`spec.patch`), if there is one, shortens the text. Blocks may contain learners that see the whole text.
    The head starts at zero: every class is as likely as any other.
    """

    def __init__(self, spec: ModelSpec, vocab: int, recompute: bool = False) -> None:
        if spec.head is None:
            raise InputError("this recipe is of a language model, not of an encoder", "give it a model.head")
        super().__init__(spec, vocab, recompute)
        self.patch = build_stem(spec.patch, spec.width) if spec.patch is not None else None
        self.pool = Pool(spec.head.pool, spec.width)
        self.head = Linear(spec.width, spec.head.classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None, trace: Trace | None = None) -> Tensor:
        """Logits [B, classes] of the texts `tokens` int64 [B, T], right-padded where `lengths` int64 [B] is given."""
        return self.read(tokens, lengths, trace)[0]

    def read(self, tokens: Tensor, lengths: Tensor | None, trace: Trace | None = None) -> tuple[Tensor, Pass]:
        """The logits, and the pass with the learners' measures."""
        x = self.embed(tokens, torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens))
        if self.patch is not None:
            x, lengths = self.patch(x, lengths)
        ctx = Pass.over(x, lengths, trace=trace)
        hidden, _ = self.run(x, self.init_state(tokens.shape[0]).blocks, ctx)
        return self.head(self.pool(hidden, ctx).to(self.head.weight.dtype)), ctx

    def loss(
        self, tokens: Tensor, targets: Tensor, state: ModelState | None = None, lengths: Tensor | None = None
    ) -> tuple[Loss, ModelState]:
        """Cross-entropy of each row's class, which `targets` int64 [B, T] contain at one token, with -100 at the
        others.

        The contract is a language model's, so that one trainer serves both; an encoder has no state.
        """
        if state is not None:
            raise InputError("an encoder reads a text at once", "it takes no state to go on from")
        logits, ctx = self.read(tokens, lengths)
        labels = targets.amax(1)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        each = torch.where(targets == IGNORED, 0.0, losses.detach()[:, None])
        empty = ModelState(torch.zeros(tokens.shape[0], dtype=torch.int64, device=tokens.device), [])
        scored = (labels != IGNORED).sum()
        return Loss(losses.sum(), scored, auxiliary(ctx), each, measures(ctx), sum(ctx.skipped)), empty

    def flops(self, time: int) -> float:
        """Floating-point operations per token of a forward pass over a text of `time` tokens."""
        stride = 1 if self.patch is None else self.patch.config.stride
        short = -(-time // stride)
        inner = sum(learner.flops(short) for learner in self.learners)
        pooling = 4.0 * self.spec.width
        stem = 0.0 if self.patch is None else self.patch.flops(time)
        return stem + (inner + pooling) * short / time + 2.0 * matrix_size(self.head) / time

    def state_bytes(self, time: int = 1) -> int:
        """0: a text is read at once, without state."""
        return 0


Model = LanguageModel | Classifier
"""What a recipe describes and the trainer trains."""


def build_model(spec: ModelSpec, vocab: int, recompute: bool = False) -> Model:
    """The model that `spec` describes: an encoder where it has a head, else a language model. A published model that a
    library runs has the interface of a language model."""
    if isinstance(spec, PublishedSpec):
        return cast(LanguageModel, LIBRARIES["transformers"](spec, recompute))
    if isinstance(spec, StudentSpec):
        raise InputError(*NO_TEACHER)
    return (LanguageModel if spec.head is None else Classifier)(spec, vocab, recompute)
