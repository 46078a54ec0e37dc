"""What follows a token: logits, the model's confidence, and the outputs that are reported with a sampled token."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.hardware.transfer import to_device
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import TokenOutput
from synthe_core.inference.sampler import token_logprobs
from synthe_core.inference.sequence import Sequence
from synthe_core.layers.adapter_batch import select_rows


class Heads(NamedTuple):
    """float32 logits [N, V], and the model's confidence [N], which means something in the rows that ask for it; None if
    no row does."""

    logits: Tensor
    confidence: Tensor | None

    def rows(self, index: Many[int]) -> Heads:
        """Those of rows `index`."""
        rows = to_device(list(index), self.logits.device)
        confidence = None if self.confidence is None else self.confidence.index_select(0, rows)
        return Heads(self.logits.index_select(0, rows), confidence)


def next_token_heads(
    model: LoadedModel,
    hidden: Tensor,
    signals: Mapping[str, Tensor],
    asking: Many[int] | None = None,
    logits: Tensor | None = None,
) -> Heads:
    """From the head's input [N, D] and the signals [N]; with the confidence of the rows `asking`, None for all. logits:
    those of the head, where they are computed already."""
    logits = model.logits(hidden) if logits is None else logits
    if asking is None or len(asking) == len(hidden):
        return Heads(logits, _confidence(model, hidden, signals, logits))
    if not asking:
        return Heads(logits, None)
    index = to_device(list(asking), hidden.device)
    own = {name: value.index_select(0, index) for name, value in signals.items()}
    with select_rows(asking):
        confidence = _confidence(model, hidden.index_select(0, index), own, logits.index_select(0, index))
    return Heads(logits, confidence.new_full((len(hidden),), torch.nan).index_copy(0, index, confidence))


def _confidence(model: LoadedModel, hidden: Tensor, signals: Mapping[str, Tensor], logits: Tensor) -> Tensor:
    max_logprob = logits.amax(-1) - logits.logsumexp(-1)
    beside = {name: value[:, None] for name, value in signals.items()}
    return model.confidence(hidden[:, None], beside, max_logprob[:, None])[:, 0]


def token_outputs(
    sequences: Many[Sequence], tokens: Many[int | Exception], heads: Heads
) -> list[TokenOutput | Exception]:
    """The output of each sequence, or the error that its token or logprobs led to."""
    outputs: list[TokenOutput | Exception] = [
        token if isinstance(token, Exception) else TokenOutput(token) for token in tokens
    ]
    if heads.confidence is None:
        return outputs
    asking = {
        row: token
        for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True))
        if sequence.request.return_logprob and not isinstance(token, Exception)
    }
    if not asking:
        return outputs
    if len(asking) < len(sequences):
        heads = heads.rows(list(asking))
    assert heads.confidence is not None
    top = [sequences[row].request.logprobs or 0 for row in asking]
    logprobs = token_logprobs(heads.logits, list(asking.values()), top)
    for (row, token), logprob, confidence in zip(asking.items(), logprobs, heads.confidence.tolist(), strict=True):
        if isinstance(logprob, Exception):
            outputs[row] = logprob
        else:
            outputs[row] = TokenOutput(token, "", *logprob, confidence)
    return outputs
