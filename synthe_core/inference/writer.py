"""The next token of many rows at once: chosen, told of, and looked at for whether the text ends with it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from synthe_core.inference.live import Live
from synthe_core.inference.request import Chance, Reason, Told, Written
from synthe_core.inference.sampling import choose


def prepare(row: Live, vocab: int, device: torch.device) -> None:
    """What choosing needs to know of a row, before its first token."""
    sampling = row.request.sampling
    if sampling.temperature > 0:
        row.generator = torch.Generator(device).manual_seed(row.request.seed % (1 << 63))
    if sampling.repetition_penalty != 1.0:
        row.seen = torch.zeros(vocab, dtype=torch.bool, device=device)
        row.seen[torch.tensor(row.tokens, device=device)] = True
    if sampling.counts:
        row.often = torch.zeros(vocab, device=device)


def advance(
    rows: Sequence[Live], logits: Tensor, confidence: Tensor, ends: Collection[int]
) -> list[tuple[Live, Written, Reason | None]]:
    """Chooses each row's next token from float32 logits [N, V]; `confidence` [N] is the model's in its likeliest.

    Gives what to tell of each row, and why the row is at its end with it, None where it goes on.
    """
    whole = logits.logsumexp(-1, keepdim=True)
    chosen = _choose(rows, logits)
    chances = (logits.gather(1, chosen[:, None]) - whole)[:, 0].tolist()
    most = max(row.request.logprobs or 0 for row in rows)
    top = logits.topk(min(most, logits.shape[1])) if most else None
    values = [] if top is None else (top.values - whole).tolist()
    places = [] if top is None else top.indices.tolist()
    found = []
    told = zip(rows, chosen.tolist(), chances, confidence.tolist(), strict=True)
    for index, (row, token, chance, sure) in enumerate(told):
        row.written.append(token)
        if row.seen is not None:
            row.seen[token] = True
        if row.often is not None:
            row.often[token] += 1
        text = row.row.push(token)
        reason: Reason | None = None
        if row.row.ended or (token in ends and not row.request.to_the_end):
            reason = "stop"
        elif row.constraint is not None:
            row.constraint.accept(token)
            reason = "stop" if row.constraint.done else None
        if reason is None and len(row.written) >= row.request.count:
            reason = "length"
        wanted = row.request.logprobs or 0
        near = tuple(map(Chance, places[index][:wanted], values[index][:wanted])) if wanted else ()
        found.append((row, Written(token, text, Chance(token, chance), near, sure), reason))
    return found


def _choose(rows: Sequence[Live], logits: Tensor) -> Tensor:
    samplings = [row.request.sampling for row in rows]
    for index, row in enumerate(rows):
        if row.constraint is not None:
            if not any(other.constraint for other in rows[:index]):
                logits = logits.clone()
            logits[index].masked_fill_(~row.constraint.allowed().to(logits.device), -torch.inf)
    seen = _stacked([row.seen for row in rows], logits)
    often = _stacked([row.often for row in rows], logits)
    generators = [row.generator for row in rows]
    return choose(logits, samplings, seen, generators, often)  # type: ignore[arg-type]  # None where it is greedy


def _stacked(parts: Sequence[Tensor | None], logits: Tensor) -> Tensor | None:
    some = next((part for part in parts if part is not None), None)
    if some is None:
        return None
    nothing = torch.zeros_like(some)
    return torch.stack([nothing if part is None else part for part in parts])


def tell(row: Live, logits: Tensor | None, first: int, last: int) -> None:
    """Notes what is to be told of the prompt's tokens `first` .. `last` - 1, the first of which follows on what
    `row.before` says; logits [last - first, V] are those after each of them, None where no logprobs are asked."""
    if logits is None:
        row.told += [Told(token, None) for token in row.tokens[first:last]]
        return
    before = logits.new_full((1, logits.shape[1]), torch.nan) if row.before is None else row.before[None]
    ahead = torch.cat([before, logits])
    row.before, ahead = ahead[-1], ahead[:-1]
    chances = ahead.log_softmax(-1)
    tokens = row.tokens[first:last]
    own = chances.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    top = chances.topk(min(row.request.logprobs or 0, logits.shape[1]))
    values, places = top.values.tolist(), top.indices.tolist()
    for index, token in enumerate(tokens):
        if own[index] != own[index]:  # nothing foretells the first
            row.told.append(Told(token, None))
        else:
            row.told.append(Told(token, Chance(token, own[index]), tuple(map(Chance, places[index], values[index]))))
