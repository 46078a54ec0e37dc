"""What a given amount of memory is used for: which layers stay in it, how much is for states and for passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from synthe_core.errors import InputError
from synthe_core.units import format_size

LATER = 64 << 20
"""Bytes for what a process loads after its model: kernels, a server, buffers of libraries."""
SHARE = 8
"""A pass takes at most this part of what is left beside the weights that must stay."""
SHORT = 1024  # tokens of a text for which there is always room
LONG = 2048  # tokens of the texts by which room for states is reckoned
TEXTS = 16
"""Texts at once, where nobody says how many there are: a pass that is read for all of them is worth more than layers
that stay."""
MOST_TOKENS, FEWEST_TOKENS, STEP = 4096, 16, 16
SPARE = 16
"""MiB by which the program may be larger the next time it is started."""
COPIES = 3
"""A pass makes new states beside the old ones, and those of single texts are put together."""


@dataclass(frozen=True)
class MemoryPlan:
    """memory: what was given, in bytes. process: of it, what the process takes without the model. fixed: the weights
    outside of layers. resident: how many layers stay in memory, from the first on; resident_bytes: theirs. slots: the
    sizes of the buffers for the others; streamed: the bytes of these, which each pass reads. states: of all texts at
    once; workspace: of a pass, which reads up to prefill_tokens.
    """

    memory: int
    process: int
    fixed: int
    resident: int
    resident_bytes: int
    slots: tuple[int, ...]
    streamed: int
    states: int
    workspace: int
    prefill_tokens: int

    @property
    def cache_bytes(self) -> int:
        """For states of prompts that were read before: what is left."""
        used = self.process + self.fixed + self.resident_bytes + sum(self.slots) + COPIES * self.states + self.workspace
        return max(0, self.memory - used) // 2

    def at_most(self, states: int | None, cache: int) -> tuple[int, int]:
        """So many bytes of states (None: any number) and of cached ones, or as many as there is room for."""
        return self.states if states is None else min(states, self.states), min(cache, self.cache_bytes)


@dataclass(frozen=True)
class MemoryNeeds:
    """What a model takes, in bytes. process: the process without it. fixed: weights outside of layers; layers: theirs.
    state_bytes: a text's state by its length. token_bytes: of a pass for each token, row_bytes: once for logits."""

    process: int
    fixed: int
    layers: Sequence[int]
    state_bytes: Callable[[int], int]
    token_bytes: int
    row_bytes: int

    @property
    def smallest(self) -> int:
        """What is needed at least: room for two layers, the state of a short text, and a pass of a few tokens."""
        least_work = FEWEST_TOKENS * self.token_bytes + self.row_bytes
        states = COPIES * self.state_bytes(SHORT)
        return self.process + LATER + self.fixed + sum(sorted(self.layers)[-2:]) + states + least_work


def plan_memory(memory: int, needs: MemoryNeeds, texts: int = TEXTS) -> MemoryPlan:
    """texts: for the states of so many there is room, if they take no more than three quarters of what is left.
    InputError names the smallest memory that works."""
    layers = needs.layers
    if memory < needs.smallest:
        raise InputError(
            f"--memory {format_size(memory)}: this model needs at least {_rounded_up(needs.smallest)}",
            f"{format_size(needs.process + LATER)} are the program's, {format_size(needs.fixed)} weights that stay, "
            f"{format_size(sum(sorted(layers)[-2:]))} two layers, the rest is for a text and a pass",
        )
    process = needs.process + LATER
    least_states = needs.state_bytes(SHORT)
    free = memory - needs.smallest
    wanted = max(least_states, texts * needs.state_bytes(LONG))
    states = min(wanted, least_states + free * 3 // 4 // COPIES)
    tokens = min(MOST_TOKENS, FEWEST_TOKENS + free // SHARE // max(1, needs.token_bytes)) // STEP * STEP
    workspace = tokens * needs.token_bytes + needs.row_bytes
    room = memory - process - needs.fixed - COPIES * states - workspace
    resident, slots = _resident(layers, room)
    return MemoryPlan(
        memory, process, needs.fixed, resident, sum(layers[:resident]), slots, sum(layers[resident:]),
        states, workspace, tokens,
    )  # fmt: skip


def choose_layout(memory: int, layouts: Sequence[MemoryNeeds], texts: int = TEXTS) -> tuple[int, MemoryPlan]:
    """The number of a layout and its plan. layouts: the first with all that is outside of layers in memory, which is
    chosen where nothing is read in passes; the others with ever less of it: of these the first that fits. InputError
    of the last one."""
    if memory >= layouts[0].smallest and not (plan := plan_memory(memory, layouts[0], texts)).streamed:
        return 0, plan
    fitting = (number for number in range(1, len(layouts)) if memory >= layouts[number].smallest)
    number = next(fitting, len(layouts) - 1)
    return number, plan_memory(memory, layouts[number], texts)


def _rounded_up(size: int) -> str:
    """A size that can be given as it is shown."""
    return f"{-(-size >> 20) + SPARE}MiB"


def _resident(layers: Sequence[int], room: int) -> tuple[int, tuple[int, ...]]:
    """How many layers stay in memory, and the buffers' sizes for the others, an even number of them: so the last and
    the first one have different buffers."""
    if sum(layers) <= room:
        return len(layers), ()
    best = 0
    for count in range(len(layers) + 1):
        if sum(layers[:count]) + sum(slot_sizes(layers[count:])) <= room and (len(layers) - count) % 2 == 0:
            best = count
    return best, slot_sizes(layers[best:])


def slot_sizes(layers: Sequence[int]) -> tuple[int, ...]:
    """The sizes of two buffers for layers that take turns."""
    return tuple(max(layers[first::2], default=0) for first in (0, 1))
