"""What follows the sequences of a pass, where some of them generate one text together."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch

from synthe_core.inference.heads import Heads
from synthe_core.inference.sequence import Sequence


def mixed(sequences: Many[Sequence], heads: Heads) -> tuple[list[Sequence], Heads, list[Sequence]]:
    """Rows of `heads` with those of mixtures replaced: the sequences that go on and what follows each, and those that
    wait for the other members of their mixture. The members of a mixture stand together, its first one first."""
    alone = [row for row, each in enumerate(sequences) if each.mixture is None]
    parts = [heads.rows(alone)] if alone else []
    going, waiting = [sequences[row] for row in alone], list[Sequence]()
    for row, each in enumerate(sequences):
        if each.mixture is None:
            continue
        each.mixture.put(each, heads.rows([row]))
        waiting.append(each)
        if each.mixture.is_complete:
            parts.append(Heads(*each.mixture.take()))
            going += each.mixture.members
            waiting = [other for other in waiting if other.mixture is not each.mixture]
    return going, _joined(parts), waiting


def share_tokens(sequences: Many[Sequence], tokens: list[int | Exception]) -> None:
    """Gives every member of a mixture the token that its first member has drawn."""
    drawn = {
        each.mixture: token
        for each, token in zip(sequences, tokens, strict=True)
        if each.mixture is not None and each is each.mixture.members[0]
    }
    for row, each in enumerate(sequences):
        if each.mixture is not None:
            tokens[row] = drawn[each.mixture]


def _joined(parts: Many[Heads]) -> Heads:
    """The rows of several, with a confidence where any has one."""
    if not parts:
        return Heads(torch.empty(0, 0), None)
    logits = torch.cat([each.logits for each in parts])
    if all(each.confidence is None for each in parts):
        return Heads(logits, None)
    confidence = [
        each.logits.new_full((len(each.logits),), torch.nan) if each.confidence is None else each.confidence
        for each in parts
    ]
    return Heads(logits, torch.cat(confidence))
