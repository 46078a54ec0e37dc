"""What a specialist learns next: which pairs are trained on, which are held out, and which of earlier ones return."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from synthe_core.errors import InputError
from synthe_core.swarm.feedback.pairs import Pair, Pairs, PairState
from synthe_core.swarm.learning.learned_pairs import LearnedPairs
from synthe_core.swarm.spec import LearningSpec, PromotionSpec

SEPARATOR = "+"
"""Between the names of specialists that wrote a text together."""


@dataclass(frozen=True)
class Plan:
    """Pairs by id. trained, held_out: new ones. replayed: earlier ones that are trained on again. earlier: those that
    were held out before. start: the adapter that training begins with, None for a new one.
    """

    specialist: str
    start: str | None
    trained: tuple[int, ...]
    held_out: tuple[int, ...]
    replayed: tuple[int, ...]
    earlier: tuple[int, ...]

    @property
    def digest(self) -> str:
        """The same for the same work."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def json(self) -> dict[str, Any]:
        return asdict(self)


def new_pairs(pairs: Pairs, specialist: str) -> list[Pair]:
    """The approved pairs of a specialist, oldest first: those whose rejected answer it wrote, alone or with others."""
    every = pairs.entries(PairState.APPROVED)
    return [pair for pair in every if specialist in pair.specialist.split(SEPARATOR)]


def plan_of(
    specialist: str,
    start: str | None,
    pairs: Pairs,
    learned: LearnedPairs,
    learning: LearningSpec,
    promotion: PromotionSpec,
) -> Plan:
    """The next work of a specialist, the same for the same pairs.

    A prompt is on one side with all its pairs, drawn by a hash of it; one that was held out earlier stays held out.
    InputError where too few are left to learn from, or to measure on.
    """
    new = new_pairs(pairs, specialist)
    earlier = [pairs.get(id) for id in learned.of(specialist, "held_out")]
    before = [pairs.get(id) for id in learned.of(specialist, "trained")]
    fixed = {_key(pair): True for pair in earlier} | {_key(pair): False for pair in before}
    prompts = sorted({_key(pair) for pair in new} - fixed.keys())
    held = set(prompts[: math.ceil(learning.held_out * len(prompts))]) | {
        key for key, is_held in fixed.items() if is_held
    }
    held_out = [pair for pair in new if _key(pair) in held]
    trained = [pair for pair in new if _key(pair) not in held]
    if not trained or len(held_out) < promotion.min_held_out:
        raise InputError(
            f"{specialist} has {len(new)} approved pair{'s' * (len(new) != 1)} to learn, of which {len(held_out)} are "
            f"held out, and promotion.min_held_out is {promotion.min_held_out}",
            "approve more: synthe swarm pairs review SWARM",
        )
    replayed = _drawn(before, min(len(before), round(learning.replay * len(trained))))
    return Plan(specialist, start, _ids(trained), _ids(held_out), _ids(replayed), _ids(earlier))


def _key(pair: Pair) -> str:
    """A hash of a pair's prompt, by which sides are drawn."""
    return hashlib.sha256(" ".join(pair.prompt.split()).encode()).hexdigest()


def _drawn(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """`count` of the pairs, spread evenly over the time in which they were learned."""
    return [pairs[number * len(pairs) // count] for number in range(count)]


def _ids(pairs: Sequence[Pair]) -> tuple[int, ...]:
    return tuple(pair.id for pair in pairs)
