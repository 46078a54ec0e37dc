"""Log-probabilities of the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from torch import Tensor

from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import Logprob, PromptLogprob
from synthe_core.inference.sequence import Sequence

LOGITS = 1 << 24
"""Logits that are held at a time."""


def report_prompt(model: LoadedModel, group: Many[Sequence], hidden: Tensor) -> None:
    """Adds the prompt's next tokens to what the sequences of a group report, given the head's input after each of
    them."""
    reader, before = group[0], len(group[0].prompt_logprobs)
    first = reader.num_computed_tokens
    size = len(hidden) if reader.request.logprobs is None else max(1, LOGITS // model.vocab)
    for start in range(0, len(hidden), size):
        part = hidden[start : start + size]
        logits = None if reader.request.logprobs is None else model.logits(part)
        add_prompt_logprobs(reader, logits, first + start, first + start + len(part))
    for sequence in group[1:]:
        sequence.prompt_logprobs += reader.prompt_logprobs[before:]
        sequence.last_prompt_logits = reader.last_prompt_logits


def add_prompt_logprobs(sequence: Sequence, logits: Tensor | None, first: int, last: int) -> None:
    """Adds the prompt's tokens `first` .. `last` - 1 to what the sequence reports.

    logits [last - first, V] follow each of those tokens; None if no logprobs are requested. Those before the first are
    in `sequence.last_prompt_logits`.
    """
    tokens = sequence.token_ids[first:last]
    if logits is None:
        sequence.prompt_logprobs += [PromptLogprob(token, None) for token in tokens]
        return
    previous = sequence.last_prompt_logits
    before = logits.new_full((1, logits.shape[1]), torch.nan) if previous is None else previous[None]
    ahead = torch.cat([before, logits])
    sequence.last_prompt_logits, ahead = ahead[-1], ahead[:-1]
    logprobs = ahead.log_softmax(-1)
    own = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    top = logprobs.topk(min(sequence.request.logprobs or 0, logits.shape[1]))
    values, ids = top.values.tolist(), top.indices.tolist()
    for index, token in enumerate(tokens):
        if own[index] != own[index]:  # nothing comes before the first token
            sequence.prompt_logprobs.append(PromptLogprob(token, None))
        else:
            best = tuple(map(Logprob, ids[index], values[index]))
            sequence.prompt_logprobs.append(PromptLogprob(token, Logprob(token, own[index]), best))
