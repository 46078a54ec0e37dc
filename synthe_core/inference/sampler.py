"""The next token of many rows at once. A row whose settings cannot be computed fails alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import WorkError
from synthe_core.hardware.transfer import to_device
from synthe_core.inference.constraints import Constraint
from synthe_core.inference.outputs import Logprob
from synthe_core.inference.random_generator import random_generator
from synthe_core.inference.sampling_params import SamplingParams


@dataclass(eq=False)
class SamplingState:
    """What sampling remembers of one sequence.

    generator:    every row draws from its own, on the CPU, so that it depends neither on the rows beside it nor on the
                  device; None if greedy.
    seen_tokens:  bool [V], tokens that the repetition penalty applies to; None without one.
    token_counts: float32 [V], how often each token was generated; None where no penalty needs it.
    end_tokens:   bool [V], tokens that end the text, and so may not come among the next `num_postponed`.
    """

    params: SamplingParams
    generator: torch.Generator | None = None
    seen_tokens: Tensor | None = None
    token_counts: Tensor | None = None
    constraint: Constraint | None = None
    end_tokens: Tensor | None = None
    num_postponed: int = 0

    @classmethod
    def create(
        cls,
        params: SamplingParams,
        seed: int,
        vocab: int,
        prompt: Sequence[int],
        device: torch.device,
        constraint: Constraint | None = None,
    ) -> SamplingState:
        """The state of a sequence that has generated nothing."""
        state = cls(params, constraint=constraint)
        if params.temperature > 0:
            state.generator = random_generator(seed)
        if params.repetition_penalty != 1.0:
            state.seen_tokens = torch.zeros(vocab, dtype=torch.bool, device=device)
            state.seen_tokens.index_fill_(0, to_device(prompt, device, torch.int64), True)
        if params.uses_token_counts:
            state.token_counts = torch.zeros(vocab, device=device)
        return state

    def postpone_end(self, num_tokens: int, token_ids: Sequence[int], vocab: int) -> None:
        """None of these tokens comes among the next `num_tokens`."""
        self.num_postponed = num_tokens
        self.end_tokens = torch.zeros(vocab, dtype=torch.bool)
        self.end_tokens[torch.tensor([each for each in token_ids if each < vocab], dtype=torch.int64)] = True

    def forbidden_tokens(self) -> Tensor | None:
        """bool [V]: the tokens that may not come next; None for none."""
        allowed = None if self.constraint is None else self.constraint.allowed_tokens()
        forbidden = None if allowed is None else ~allowed
        if self.num_postponed and self.end_tokens is not None:
            early = self.end_tokens if forbidden is None else forbidden | self.end_tokens
            return forbidden if early.all() else early  # a grammar may allow nothing but the end
        return forbidden

    def accept(self, token_id: int) -> None:
        """Records a generated token."""
        self.num_postponed -= self.num_postponed > 0
        if self.seen_tokens is not None:
            self.seen_tokens[token_id].fill_(True)  # from no tensor of the host
        if self.token_counts is not None:
            self.token_counts[token_id] += 1


@torch.inference_mode()
def sample(logits: Tensor, rows: Sequence[SamplingState]) -> list[int | Exception]:
    """One token a row from float32 logits [N, V]; in place of a token, the error that a row's settings led to.

    No row draws before all that can fail for several rows at once is computed: if that raises, the rows are computed
    one by one, and those without a fault draw what they would have drawn.
    """
    try:
        scores = _apply_penalties(_apply_constraints(logits, rows), rows)
        drawn = [index for index, row in enumerate(rows) if row.params.temperature > 0]
        probabilities = (
            _probabilities(_select(scores, drawn, len(rows)), [rows[i].params for i in drawn]) if drawn else None
        )
        likeliest = scores.argmax(-1)  # NaN counts as the largest
        largest = scores.gather(1, likeliest[:, None])[:, 0]
    except Exception as error:
        if len(rows) == 1:
            return [error]
        return [token for index, row in enumerate(rows) for token in sample(logits[index : index + 1], [row])]
    parts = [likeliest, largest]
    if probabilities is not None:
        parts += _draw(probabilities, [rows[index].generator for index in drawn])
    tokens, scored, *chosen = _on_host(parts)  # the only wait for the device
    for index, token, total in zip(drawn, *chosen, strict=True) if drawn else ():
        tokens[index] = token if math.isfinite(total) else math.nan
    return [
        _token(token, score, row) if row.params.temperature > 0 or math.isfinite(score) else _without_choice(score, row)
        for token, score, row in zip(tokens, scored, rows, strict=True)
    ]


def _on_host(parts: Sequence[Tensor]) -> list[list[float]]:
    """Vectors of a device as lists, in one copy. Token ids are exact: float32 holds those below 2^24."""
    wide = _widest(parts[0].device)
    values = torch.cat([part.to(wide) for part in parts]).tolist()
    ends = list(accumulate(len(part) for part in parts))
    return [values[first:end] for first, end in zip([0, *ends], ends, strict=False)]


def _token(token: float, score: float, row: SamplingState) -> int | Exception:
    """The token that was chosen, or why there is none: `token` is NaN where the probabilities are not finite."""
    if not math.isnan(token):
        return int(token)
    if math.isfinite(score):
        return WorkError("the probabilities of the next token are not finite")
    return _without_choice(score, row)


def _without_choice(largest: float, row: SamplingState) -> Exception:
    """The error of a row whose largest score is no finite number."""
    if largest == -math.inf:
        return WorkError(f"{'the grammar' if row.constraint else 'the model'} allows no next token")
    return WorkError(
        f"the scores of the next token are not finite: the largest is {largest}",
        "weights or an adapter with NaN or infinite values, a damaged session, or too large a bias lead to this",
    )


def _draw(probabilities: Tensor, generators: Sequence[torch.Generator | None]) -> tuple[Tensor, Tensor]:
    """A token from each row of probabilities [N, V]: the first at which their sum exceeds a uniform number, which is
    drawn from the row's own generator. Returns the tokens [N] and the sums of all probabilities [N]."""
    wide = _widest(probabilities.device)
    sums = probabilities.to(wide).cumsum(-1)
    total = sums[:, -1:]
    numbers = torch.cat([torch.rand(1, generator=each, dtype=wide) for each in generators])
    uniform = to_device(numbers, probabilities.device)[:, None]
    below = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, below, right=True)[:, 0], total[:, 0]


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # mps has no float64


TokenLogprobs = tuple[Logprob, tuple[Logprob, ...]]
"""A token with its log-probability, and the likeliest tokens with theirs."""


def token_logprobs(logits: Tensor, tokens: Sequence[int], top: Sequence[int]) -> list[TokenLogprobs | Exception]:
    """Log-probabilities of each row's token under float32 logits [N, V], and of the `top` likeliest of each row; in
    their place, the error that a row led to."""
    try:
        return list(_token_logprobs(logits, tokens, top))
    except Exception as error:
        if len(tokens) == 1:
            return [error]
        rows = range(len(tokens))
        return [token_logprobs(logits[i : i + 1], tokens[i : i + 1], top[i : i + 1])[0] for i in rows]


def _token_logprobs(logits: Tensor, tokens: Sequence[int], top: Sequence[int]) -> list[TokenLogprobs]:
    total = logits.logsumexp(-1, keepdim=True)
    index = to_device(tokens, logits.device)[:, None]
    parts, most = [(logits.gather(1, index) - total)[:, 0]], min(max(top, default=0), logits.shape[1])
    if most:
        best = logits.topk(most)
        parts += [(best.values - total).flatten(), best.indices.flatten()]
    own, *likeliest = _on_host(parts)
    values, ids = likeliest or ([], [])
    outputs: list[TokenLogprobs] = []
    for row, (token, logprob, count) in enumerate(zip(tokens, own, top, strict=True)):
        best_of_row = slice(row * most, row * most + min(count, most))
        outputs.append((Logprob(token, logprob), tuple(map(Logprob, map(int, ids[best_of_row]), values[best_of_row]))))
    return outputs


def _apply_constraints(logits: Tensor, rows: Sequence[SamplingState]) -> Tensor:
    """-inf for tokens that a row may not generate."""
    masks = {index: mask for index, row in enumerate(rows) if (mask := row.forbidden_tokens()) is not None}
    if not masks:
        return logits
    forbidden = to_device(torch.stack([mask.cpu() for mask in masks.values()]), logits.device)
    if len(masks) == len(rows):
        return logits.masked_fill(forbidden, -torch.inf)
    index = to_device(list(masks), logits.device)
    return logits.index_copy(0, index, logits.index_select(0, index).masked_fill(forbidden, -torch.inf))


def _apply_penalties(logits: Tensor, rows: Sequence[SamplingState]) -> Tensor:
    """Penalties and biases. The logits of rows without any stay what they are, to the bit."""
    params = [row.params for row in rows]
    if all(one.keeps_logits for one in params):
        return logits
    seen = _stacked([row.seen_tokens for row in rows])
    if seen is not None:
        penalty = _column(logits, [one.repetition_penalty for one in params])
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    counts = _stacked([row.token_counts for row in rows])
    if counts is not None:
        frequency = _column(logits, [one.frequency_penalty for one in params])
        presence = _column(logits, [one.presence_penalty for one in params])
        logits = logits - frequency * counts - presence * (counts > 0)
    if any(one.logit_bias for one in params):
        logits = logits.clone()
        for index, one in enumerate(params):
            if one.logit_bias:
                ids = to_device(list(one.logit_bias), logits.device)
                logits[index].index_add_(0, ids, to_device(list(one.logit_bias.values()), logits.device, logits.dtype))
    return logits


def _select(scores: Tensor, indices: Sequence[int], rows: int) -> Tensor:
    if len(indices) == rows:
        return scores
    return scores.index_select(0, to_device(indices, scores.device))


def _probabilities(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """What the next token is drawn from [N, V], after temperature and filters."""
    divisor = _column(logits, [one.temperature for one in params]).clamp(min=torch.finfo(logits.dtype).tiny)
    # Relative to the largest, so that a temperature of almost nothing is greedy rather than infinite.
    logits = (logits - logits.amax(-1, keepdim=True)) / divisor
    logits = _keep_top_k(logits, params)
    logits = _keep_top_p(logits, params)
    if any(one.min_p > 0 for one in params):
        probabilities = logits.softmax(-1)
        floor = _column(logits, [one.min_p for one in params]) * probabilities.amax(-1, keepdim=True)
        logits = logits.masked_fill(probabilities < floor, -torch.inf)
    return logits.softmax(-1)


def _keep_top_k(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    vocab = logits.shape[-1]
    sizes = [one.top_k if 0 < one.top_k < vocab else 0 for one in params]
    if not any(sizes):
        return logits
    values = logits.topk(max(sizes), dim=-1).values
    last = to_device([max(size, 1) - 1 for size in sizes], logits.device)[:, None]
    threshold = values.gather(1, last).masked_fill(_column(logits, sizes) == 0, -torch.inf)
    return logits.masked_fill(logits < threshold, -torch.inf)


def _keep_top_p(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    if all(one.top_p >= 1 for one in params):
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    # For a row without a limit: the sum before any token is below 2, whatever the rounding.
    limit = _column(logits, [one.top_p if one.top_p < 1 else 2.0 for one in params])
    beyond = probabilities.cumsum(-1) - probabilities >= limit
    beyond[:, 0] = False  # also where top_p is smaller than float32 can hold
    return logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)


def _stacked(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The parts as rows, zeros for those that are None; None if all are."""
    like = next((part for part in parts if part is not None), None)
    if like is None:
        return None
    zeros = torch.zeros_like(like)
    return torch.stack([zeros if part is None else part for part in parts])


def _column(like: Tensor, values: Sequence[Any]) -> Tensor:
    return to_device(values, like.device, like.dtype)[:, None]
